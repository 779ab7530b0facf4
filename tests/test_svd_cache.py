import pytest
import torch

from lit_spectral import linalg
from lit_spectral.svd_cache import SVDCache


@pytest.fixture
def weight():
    return torch.randn(12, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def counted(monkeypatch):
    """How often a spectrum was computed."""
    calls = []
    original = linalg.singular_values
    monkeypatch.setattr(linalg, "singular_values", lambda w: calls.append(1) or original(w))
    return calls


def test_the_second_request_is_read_from_disk(tmp_path, weight, counted):
    first = SVDCache(tmp_path).singular_values(weight)
    second = SVDCache(tmp_path).singular_values(weight)
    assert torch.equal(first, second)
    assert len(counted) == 1


def test_another_weight_of_the_same_shape_has_its_own_entry(tmp_path, weight, counted):
    cache = SVDCache(tmp_path)
    cache.singular_values(weight)
    cache.singular_values(weight + 1)
    assert len(counted) == 2


@pytest.mark.parametrize("harm", ["truncate", "flip", "empty"])
def test_a_damaged_file_is_computed_again(tmp_path, weight, counted, harm):
    cache = SVDCache(tmp_path)
    expected = cache.singular_values(weight)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[-3] ^= 0xFF
    path.write_bytes({"truncate": bytes(content[:-9]), "flip": bytes(content), "empty": b""}[harm])
    assert torch.equal(cache.singular_values(weight), expected)
    assert len(counted) == 2
    cache.singular_values(weight)
    assert len(counted) == 2  # the file was mended


def test_an_interrupted_write_leaves_no_file(tmp_path, weight, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("lit_spectral.svd_cache.save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        SVDCache(tmp_path).singular_values(weight)
    assert not list(tmp_path.iterdir())


def test_singular_triplets_are_kept_by_part_rank_and_seed(tmp_path, weight):
    cache = SVDCache(tmp_path)
    u, sigma, v = cache.singular_triplets(weight, "random", 3, seed=1)
    assert (u.shape, sigma.shape, v.shape) == ((12, 3), (3,), (8, 3))
    assert not torch.equal(u, cache.singular_triplets(weight, "random", 3, seed=2).u)
    assert not torch.equal(u, cache.singular_triplets(weight, "top", 3).u)
    assert cache.singular_triplets(weight, "random", 4, seed=1).u.shape == (12, 4)
    assert torch.equal(cache.singular_triplets(weight, "random", 3, seed=1).u, u)


def test_bfloat16_weights_have_entries_too(tmp_path, weight, counted):
    cache = SVDCache(tmp_path)
    cache.singular_values(weight.bfloat16())
    cache.singular_values(weight.bfloat16())
    assert len(counted) == 1
