"""One process, two under DDP and two that share the backbone by shards: the same fit."""

import pytest
import torch
from conftest import made_once
from fits import ROWS, fit, methods, together
from squad_rows import passage, write

from lit_spectral.adapters import trained_state
from lit_spectral.checkpoint import load

MATRIX = ["FCLoRA by Gram-Schmidt", "FCLoRA", "LoRA", "MiLoRA", "HiRA", "HiPLoRA"]
STRATEGIES = ["fsdp2", "ddp"]
# Methods that no shards are for, and how the line begins.
REFUSED = {
    "FullFineTuning": "trainer.strategy: fsdp2 shards what is frozen, and FullFineTuning trains weights of the",
    "DoRA": "trainer.strategy: fsdp2 has weights in shards, which peft reads whole",
    "prompt tuning": "trainer.strategy: fsdp2 has the embeddings in shards, beside which Peft puts a learned prompt",
    "P-tuning": "trainer.strategy: fsdp2 has the embeddings in shards, beside which Peft puts a learned prompt",
    "prefix tuning": "trainer.strategy: fsdp2 has the embeddings in shards, beside which Peft puts a learned prompt",
}
OTHERS = [name for name in methods() if name not in {*MATRIX, "BitFit"}]  # of which this decoder has no biases


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Prompts and answers of unequal lengths, and an odd number of them to validate on."""
    folder = tmp_path_factory.mktemp("prompts")
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", ROWS), ("validation", 5)):
        rows = [{"q": passage(generator, 1 + i % 3), "a": passage(generator, 1 + i % 4)} for i in range(count)]
        write(folder, split, rows)
    (folder / "text.txt").write_text(passage(generator, 100))
    return str(folder)


@pytest.fixture(scope="module")
def left(data, decoder_folder, tmp_path_factory):
    """From a method to what its fits left: by one process, by two under each strategy, and gone on with."""
    return made_once(tmp_path_factory, "fits", lambda folder: fit_all(folder, decoder_folder(), data))


def fit_all(folder, backbone, data):
    base = {"backbone": backbone, "data": data}
    other = dict(zip(STRATEGIES, reversed(STRATEGIES), strict=True))
    # A cache for each method, else one of a larger rank would be read in place of what another has computed.
    caches = {method: str(folder / f"{method} cache") for method in [*MATRIX, *OTHERS]}
    fits = [
        base | {"method": method, "strategy": strategy, "out": str(folder / f"{strategy} {method}"), "cache": cache}
        for strategy in STRATEGIES
        for method, cache in caches.items()
    ]
    fits += [
        each
        | {"out": f"{each['out']} resumed", "resume": str(folder / f"{other[each['strategy']]} {each['method']}.ckpt")}
        for each in fits
        if each["method"] in MATRIX
    ]
    checkpointed = {"out": str(folder / "checkpointed"), "gradient_checkpointing": True}
    fits.append(base | checkpointed | {"method": "LoRA", "strategy": "fsdp2", "cache": caches["LoRA"]})
    together(folder, fits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIT_SPECTRAL_CACHE", "")  # to be put back; `fit` sets it
        for method, cache in caches.items():
            fit(**base, method=method, strategy="auto", out=str(folder / f"one {method}"), cache=cache)


def read(folder, name, rank=0):
    return torch.load(folder / f"{name}.{rank}.pt")


def assert_alike(found, expected, tolerance=1e-5):
    assert found.keys() == expected.keys()
    ours, theirs = (torch.cat([tensors[name].flatten() for name in expected]) for tensors in (found, expected))
    assert float((ours - theirs).norm() / theirs.norm()) < tolerance


@pytest.mark.slow
@pytest.mark.parametrize("method", [*MATRIX, *OTHERS])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_fit_as_one(strategy, method, left):
    if strategy == "fsdp2" and method in REFUSED:
        for rank in (0, 1):
            assert (left / f"fsdp2 {method}.{rank}.error").read_text().startswith(REFUSED[method])
        return
    one, two = read(left, f"one {method}"), read(left, f"{strategy} {method}")
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-4, abs=1e-6)
    assert_alike(two["moved"], one["moved"], tolerance=1e-4)
    assert max(two["outside"]) < 1e-5
    # What lies in two places would be sharded twice; peft puts embeddings beside its prompts, and these are refused.
    assert method in REFUSED or two["twice"] == []
    first, second = (read(left, f"{strategy} {method}", rank)["state"] for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
@pytest.mark.parametrize("method", MATRIX)
@pytest.mark.parametrize("strategy", STRATEGIES)
class TestMatrix:
    def test_a_checkpoint_goes_on_under_the_other_strategy(self, strategy, method, left):
        one, two = read(left, f"one {method}"), read(left, f"{strategy} {method} resumed")
        assert two["losses"] == pytest.approx(one["losses"][3:], rel=1e-5)
        assert_alike(two["state"], one["state"])

    def test_a_checkpoint_loads_in_one_process(self, strategy, method, left):
        task = load(left / f"{strategy} {method}.ckpt")
        assert_alike(trained_state(task.model), trained_state(load(left / f"one {method}.ckpt").model))

    def test_a_process_has_its_part_of_what_is_frozen(self, strategy, method, left):
        parts = [read(left, f"{strategy} {method}", rank)["shards"] for rank in (0, 1)]
        frozen = {n: size for n, size in read(left, f"{strategy} {method}")["frozen"].items() if ".base_layer." in n}
        halves = {name: [size // 2] * 2 for name, size in frozen.items() if strategy == "fsdp2"}
        assert {name: [part[name] for part in parts] for name in parts[0] if name in frozen} == halves

    def test_each_step_is_logged_once(self, strategy, method, left):
        lines = (left / f"{strategy} {method}.logs" / "metrics.csv").read_text().splitlines()
        column = lines[0].split(",").index("train/loss")
        assert len([line for line in lines[1:] if line.split(",")[column]]) == 6


@pytest.mark.slow
def test_each_spectrum_is_computed_once_and_on_either_process(left):
    first, second = (read(left, "fsdp2 FCLoRA by Gram-Schmidt", rank)["spectra"] for rank in (0, 1))
    targets = len([name for name in read(left, "one FCLoRA")["state"] if name.endswith(".sigma")])
    assert len(first) == len(second) > 1
    for ours, theirs in zip(first, second, strict=True):
        assert ours[0] == ours[1] == targets // 2 == theirs[0] == theirs[1]


@pytest.mark.slow
def test_layers_that_are_computed_again_are_put_together_again(left):
    one, two = read(left, "one LoRA"), read(left, "checkpointed")
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert_alike(two["moved"], one["moved"], tolerance=1e-4)
