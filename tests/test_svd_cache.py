import logging
import multiprocessing
import resource
import time

import pytest
import torch
from conftest import another_user

from lit_spectral import tensor_files
from lit_spectral.errors import InputError
from lit_spectral.spectra import cache as module
from lit_spectral.spectra.cache import SVDCache
from lit_spectral.spectra.partial_svd import partial_svd


@pytest.fixture
def weight():
    return torch.randn(12, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def counted(monkeypatch):
    """How many matrices were decomposed, by call."""
    calls = []
    for name in ("partial_svd", "inner_svd", "singular_values"):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda w, *args, f=original: calls.append(len(w)) or f(w, *args))
    return calls


def values(cache, *weights):
    named = {f"layer.{index}": weight for index, weight in enumerate(weights)}
    return [found.sigma for found in cache.singular_triplets(named, "top", min(weights[0].shape)).values()]


def triplets(cache, weight, *args, **kwargs):
    return cache.singular_triplets({"layer": weight}, *args, **kwargs)["layer"]


def files(folder):
    return [path for path in folder.iterdir() if path.is_file()]


def test_the_second_request_is_read_from_disk(tmp_path, weight, counted):
    first = values(SVDCache(tmp_path), weight)
    second = values(SVDCache(tmp_path), weight)
    assert torch.equal(first[0], second[0])
    assert counted == [1]


def test_weights_of_one_shape_are_decomposed_together(tmp_path, weight, counted):
    found = values(SVDCache(tmp_path), weight, weight.T.contiguous(), weight + 1)
    assert counted == [2, 1]
    for index, w in enumerate((weight, weight.T, weight + 1)):
        torch.testing.assert_close(found[index], torch.linalg.svdvals(w))


def test_a_batch_takes_bounded_memory(tmp_path, weight, counted, monkeypatch):
    monkeypatch.setitem(module.WORKSPACE, "cpu", 8 * (2 * 12 * 8 + 4 * 8**2) * 2)
    values(SVDCache(tmp_path), *(weight + i for i in range(5)))
    assert counted == [2, 2, 1]


def test_equal_weights_are_decomposed_once(tmp_path, weight, counted):
    first, second = values(SVDCache(tmp_path), weight, weight.clone())
    assert torch.equal(first, second)
    assert counted == [1]


def test_only_what_is_missing_is_decomposed(tmp_path, weight, counted):
    cache = SVDCache(tmp_path)
    values(cache, weight)
    values(cache, weight, weight + 1)
    assert counted == [1, 1]


@pytest.mark.parametrize("harm", ["truncate", "flip", "empty"])
def test_a_damaged_file_is_computed_again(tmp_path, weight, counted, harm):
    cache = SVDCache(tmp_path)
    expected = values(cache, weight)[0]
    (path,) = files(tmp_path)
    content = bytearray(path.read_bytes())
    content[-3] ^= 0xFF
    path.write_bytes({"truncate": bytes(content[:-9]), "flip": bytes(content), "empty": b""}[harm])
    assert torch.equal(values(cache, weight)[0], expected)
    assert len(counted) == 2
    values(cache, weight)
    assert len(counted) == 2  # the file was mended


def test_an_interrupted_write_leaves_no_file(tmp_path, weight, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(tensor_files, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        values(SVDCache(tmp_path), weight)
    assert not files(tmp_path)


@pytest.mark.parametrize("part", ["top", "bottom", "random"])
def test_a_larger_rank_serves_a_smaller_one(tmp_path, weight, counted, part):
    cache = SVDCache(tmp_path)
    larger = triplets(cache, weight, part, 5, seed=1)
    smaller = triplets(cache, weight, part, 3, seed=1)
    kept = slice(-3, None) if part == "bottom" else slice(3)
    assert torch.equal(smaller.sigma, larger.sigma[kept])
    assert torch.equal(smaller.u, larger.u[:, kept])
    assert torch.equal(smaller.v, larger.v[:, kept])
    assert counted == [1]


def test_a_larger_rank_replaces_a_smaller_one(tmp_path, weight, counted):
    cache = SVDCache(tmp_path)
    triplets(cache, weight, "top", 3)
    assert triplets(cache, weight, "top", 5).u.shape == (12, 5)
    triplets(cache, weight, "top", 5)
    assert counted == [1, 1]
    assert len(files(tmp_path)) == 1


def test_parts_and_seeds_have_their_own_entries(tmp_path, weight):
    cache = SVDCache(tmp_path)
    u, sigma, v = triplets(cache, weight, "random", 3, seed=1)
    assert (u.shape, sigma.shape, v.shape) == ((12, 3), (3,), (8, 3))
    assert not torch.equal(u, triplets(cache, weight, "random", 3, seed=2).u)
    assert not torch.equal(u, triplets(cache, weight, "top", 3).u)


def test_the_seed_does_not_matter_to_an_end(tmp_path, weight, counted):
    cache = SVDCache(tmp_path)
    triplets(cache, weight, "top", 3, seed=1)
    triplets(cache, weight, "top", 3, seed=2)
    assert counted == [1]


def test_bfloat16_weights_have_entries_too(tmp_path, weight, counted):
    cache = SVDCache(tmp_path)
    values(cache, weight.bfloat16())
    values(cache, weight.bfloat16())
    assert counted == [1]


def test_results_are_float32_even_of_float64_weights(tmp_path, weight):
    found = triplets(SVDCache(tmp_path), weight.double(), "top", 3)
    assert {tensor.dtype for tensor in found} == {torch.float32}


def test_an_unfit_weight_is_named_and_nothing_is_computed(tmp_path, weight, counted):
    bad = torch.full((12, 8), torch.nan)
    with pytest.raises(InputError, match=r"^encoder\.0\.query: .*NaN"):
        SVDCache(tmp_path).singular_triplets({"encoder.1.query": weight, "encoder.0.query": bad}, "top", 1)
    assert not counted


def test_a_rank_above_the_matrix_is_named(tmp_path, weight):
    with pytest.raises(InputError, match=r"^layer: rank 9"):
        triplets(SVDCache(tmp_path), weight, "top", 9)


def test_one_line_says_what_was_done(tmp_path, weight, caplog):
    caplog.set_level(logging.INFO, module.__name__)
    cache = SVDCache(tmp_path)
    values(cache, weight)
    values(cache, weight, weight + 1)
    assert [record.name for record in caplog.records] == [module.__name__] * 2
    assert "2 matrices: 1 computed" in caplog.messages[1]
    assert "1 from the cache" in caplog.messages[1]


def test_spectra_of_another_user_are_read_where_nothing_may_be_written(shared_folder, weight, counted, caplog):
    expected = values(SVDCache(shared_folder), weight)[0]
    shared_folder.chmod(0o555)
    with another_user():
        assert torch.equal(values(SVDCache(shared_folder), weight)[0], expected)
    shared_folder.chmod(0o755)
    assert counted == [1]
    assert not caplog.records


def test_a_spectrum_that_can_not_be_read_is_computed_and_the_file_left_as_it_is(shared_folder, weight, counted, caplog):
    expected = values(SVDCache(shared_folder), weight)[0]
    (path,) = files(shared_folder)
    content = path.read_bytes()
    path.chmod(0)
    (shared_folder / "locks").chmod(0o777)
    shared_folder.chmod(0o777)
    with another_user():
        assert torch.equal(values(SVDCache(shared_folder), weight)[0], expected)
    path.chmod(0o644)
    assert path.read_bytes() == content
    assert counted == [1, 1]
    (line,) = caplog.messages
    assert line.startswith(f"1 spectra can't be kept in {shared_folder} ([Errno 13] Permission denied")


def test_damaged_files_that_can_not_be_replaced_cost_one_line(shared_folder, weight, counted, caplog):
    expected = values(SVDCache(shared_folder), weight, weight + 1)
    for path in files(shared_folder):
        path.write_bytes(b"damaged")
    shared_folder.chmod(0o555)
    (shared_folder / "locks").chmod(0o555)
    with another_user():
        found = values(SVDCache(shared_folder), weight, weight + 1)
    shared_folder.chmod(0o755)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    (line,) = caplog.messages
    assert line.startswith(f"2 spectra can't be kept in {shared_folder} (")


def test_a_full_disk_costs_one_line_and_leaves_no_file(tmp_path, weight, caplog):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
    try:
        found = values(SVDCache(tmp_path), weight, weight + 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    torch.testing.assert_close(found[1], torch.linalg.svdvals(weight + 1))
    (line,) = caplog.messages
    assert line.startswith(f"2 spectra can't be kept in {tmp_path} (")
    assert not files(tmp_path)


def test_damaged_files_that_are_mended_are_told_in_one_line(tmp_path, weight, caplog):
    values(SVDCache(tmp_path), weight, weight + 1)
    for path in files(tmp_path):
        path.write_bytes(b"damaged")
    values(SVDCache(tmp_path), weight, weight + 1)
    (line,) = caplog.messages
    assert line.startswith(f"2 spectra in {tmp_path} were damaged (")


def compute_when_all_are_ready(folder, weight, ready, calls):
    original = module.partial_svd

    def slow(stacked, *options):
        with calls.get_lock():
            calls.value += len(stacked)
        time.sleep(0.3)  # for the other to find nothing on disk and meet the lock
        return original(stacked, *options)

    module.partial_svd = slow
    ready.wait()
    values(SVDCache(folder), weight)


@pytest.mark.slow
def test_two_processes_compute_a_spectrum_once(tmp_path, weight):
    # Fresh interpreters: in a forked one, threads that other tests started hold locks for ever.
    context = multiprocessing.get_context("spawn")
    calls, ready = context.Value("i", 0), context.Barrier(2)
    arguments = (tmp_path, weight, ready, calls)
    processes = [context.Process(target=compute_when_all_are_ready, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0]
    assert calls.value == 1


@pytest.mark.parametrize("shape", [(12, 8), (8, 13)])
def test_quantiles_are_those_of_all_values(tmp_path, shape):
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    levels = [0.0, 0.25, 0.3, 0.5, 1.0]
    found = SVDCache(tmp_path).drawn({"layer": weight}, 0, 0, levels)[1]["layer"]
    values = torch.linalg.svdvals(weight.double())
    expected = torch.quantile(values, torch.tensor(levels).double())
    torch.testing.assert_close(torch.tensor(found).double(), expected, rtol=1e-6, atol=0)


def test_all_values_are_read_from_disk_the_second_time(tmp_path, weight, counted):
    cache = SVDCache(tmp_path)
    first, second = (cache.singular_values({"layer": weight})["layer"] for _ in range(2))
    assert counted == [1]
    assert torch.equal(first, second)
    torch.testing.assert_close(first.double(), torch.linalg.svdvals(weight.double()), atol=1e-5, rtol=1e-4)


def test_a_draw_and_a_quantile_cost_one_decomposition_and_serve_each_alone(tmp_path, weight, counted):
    cache = SVDCache(tmp_path)
    drawn, quantiles = cache.drawn({"layer": weight}, 3, 1, [0.5])
    assert counted == [1]
    assert torch.equal(triplets(cache, weight, "random", 3, seed=1).u, drawn["layer"].u)
    assert cache.drawn({"layer": weight}, 0, 0, [0.5])[1] == quantiles
    assert cache.drawn({"layer": weight}, 2, 1, [0.5])[1] == quantiles
    assert counted == [1]


def test_what_is_missing_beside_what_is_kept_is_computed_and_that_left_alone(tmp_path, weight, counted):
    cache = SVDCache(tmp_path)
    first = cache.drawn({"layer": weight}, 0, 0, [0.5])[1]
    (path,) = files(tmp_path)
    before = path.stat().st_mtime_ns
    drawn, quantiles = cache.drawn({"layer": weight}, 3, 1, [0.5])
    assert quantiles == first
    assert path.stat().st_mtime_ns == before
    torch.testing.assert_close(drawn["layer"].sigma, partial_svd(weight, "random", 3, 1).triplets.sigma.float())
    assert counted == [1, 1]


@pytest.mark.parametrize("side", [8, 520])
def test_spectra_are_found_whatever_the_default_device_is(tmp_path, side):
    """While a model is configured Lightning's is the GPU; on `meta` what is made there has no values."""
    weight = torch.randn(side + 4, side, generator=torch.Generator().manual_seed(2))
    expected = SVDCache(tmp_path / "cpu").drawn({"layer": weight}, 2, 0, [0.3])
    with torch.device("meta"):
        found = SVDCache(tmp_path / "other").drawn({"layer": weight}, 2, 0, [0.3])
        top = SVDCache(tmp_path / "other").singular_triplets({"layer": weight}, "top", 2)["layer"]
        bottom = SVDCache(tmp_path / "other").singular_triplets({"layer": weight}, "bottom", 2)["layer"]
    assert torch.equal(found[0]["layer"].sigma, expected[0]["layer"].sigma)
    assert found[1] == expected[1]
    values = torch.linalg.svdvals(weight)
    torch.testing.assert_close(torch.cat([top.sigma, bottom.sigma]), values[[0, 1, -2, -1]], rtol=1e-4, atol=1e-4)
