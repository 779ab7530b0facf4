import torch
from lit_spectral.datamodules.sampler import LengthGroupedSampler

LENGTHS = torch.randint(3, 60, (1001,), generator=torch.Generator().manual_seed(0)).tolist()


def sampler(shuffle=True, world=1, rank=0, epoch=0, seed=0, size=16):
    made = LengthGroupedSampler(LENGTHS, size, shuffle, world, rank, seed)
    made.set_epoch(epoch)
    return list(made)


def test_every_row_comes_once_an_epoch():
    assert sorted(sampler()) == list(range(1001))


def test_order_depends_on_seed_and_epoch_alone():
    assert sampler() == sampler()
    assert sampler(epoch=1) != sampler()
    assert sampler(seed=1) != sampler()


def test_batches_hold_rows_of_similar_length():
    order = sampler()
    spread = [max(c) - min(c) for c in ([LENGTHS[i] for i in order[k : k + 16]] for k in range(0, 992, 16))]
    assert sum(spread) / len(spread) < 6  # about 50 when unsorted


def test_processes_train_on_equal_shares_of_the_same_batches():
    shares = [sampler(world=2, rank=rank) for rank in (0, 1)]
    assert len(shares[0]) == len(shares[1]) == 501
    assert set(shares[0]) | set(shares[1]) == set(range(1001))


def test_processes_evaluate_each_row_exactly_once():
    shares = [sampler(shuffle=False, world=2, rank=rank) for rank in (0, 1)]
    assert sorted(shares[0] + shares[1]) == list(range(1001))
    assert len(LengthGroupedSampler(LENGTHS, 16, False, 2, 1, 0)) == len(shares[1])
