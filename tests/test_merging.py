import dataclasses
import math
import os

import pytest
import torch

from lit_spectral.errors import InputError
from lit_spectral.updates import Delta, Pair, Update, merge_command
from lit_spectral.updates import merging as merging_module
from lit_spectral.updates.merge_rules import RULES
from lit_spectral.updates.merging import merge

PATH = "model.layers.0.mlp.up"
OUT, INTO = 12, 17


def gaussian(seed, *shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def thin(seed, rank=3, dtype=torch.float32):
    return Delta(Pair(gaussian(seed, OUT, rank, dtype=dtype), gaussian(seed + 100, rank, INTO, dtype=dtype)))


def full(seed):
    return Delta(matrix=gaussian(seed, OUT, INTO))


def updates(*deltas, **fields):
    return {f"{place}": Update({PATH: delta}, **fields) for place, delta in enumerate(deltas)}


def merged(deltas, rule="add", weights=None, **options):
    return merge(updates(*deltas), rule, weights, **options).update.changes[PATH]


def dense(delta, base=None):
    return delta.dense(base, torch.float64)


def far(found, expected):
    return float((found - expected).norm() / expected.norm())


# Independent, dense, float64.
def dense_ties(matrices, density):
    trimmed = []
    for matrix in matrices:
        order = matrix.abs().flatten().argsort(descending=True)
        mask = torch.zeros(matrix.numel(), dtype=torch.bool)
        mask[order[: round(density * matrix.numel())]] = True
        trimmed.append(torch.where(mask.view_as(matrix), matrix, 0))
    stacked = torch.stack(trimmed)
    agrees = (stacked.sign() == stacked.sum(0).sign()) & (stacked != 0)
    return (stacked * agrees).sum(0) / agrees.sum(0).clamp_min(1)


def dense_tsv(matrices, per_task):
    parts = [torch.linalg.svd(matrix, full_matrices=False) for matrix in matrices]
    ranks = [min(per_task, int(torch.linalg.matrix_rank(matrix))) for matrix in matrices]
    u = torch.cat([part[0][:, :k] for part, k in zip(parts, ranks, strict=True)], 1)
    sigma = torch.cat([part[1][:k] for part, k in zip(parts, ranks, strict=True)])
    v = torch.cat([part[2][:k] for part, k in zip(parts, ranks, strict=True)]).T

    def whitened(columns):  # X (XᵀX)^(-1/2)
        values, vectors = torch.linalg.eigh(columns.T @ columns)
        return columns @ (vectors / values.sqrt()) @ vectors.T

    return whitened(u) @ torch.diag(sigma) @ whitened(v).T


def dense_knots(matrices, density):
    joined = torch.cat(matrices, 1)
    u, sigma, vt = torch.linalg.svd(joined, full_matrices=False)
    rank = int(torch.linalg.matrix_rank(joined))
    blocks = (sigma[:rank, None] * vt[:rank]).split(INTO, 1)
    return u[:, :rank] @ dense_ties(list(blocks), density)


def dense_iso_c(matrices):
    total = torch.stack(matrices).sum(0)
    u, sigma, vt = torch.linalg.svd(total, full_matrices=False)
    rank = int(torch.linalg.matrix_rank(total))
    return sigma[:rank].mean() * u[:, :rank] @ vt[:rank]


ORACLES = {
    "add": ({}, lambda matrices: torch.stack(matrices).sum(0)),
    "ties": ({"density": 0.3}, lambda matrices: dense_ties(matrices, 0.3)),
    "tsv": ({}, lambda matrices: dense_tsv(matrices, min(OUT, INTO) // len(matrices))),
    "knots": ({"density": 0.4}, lambda matrices: dense_knots(matrices, 0.4)),
    "iso-c": ({}, dense_iso_c),
}
KINDS = {
    "thin": lambda: [thin(0), thin(1), thin(2)],
    "ranks": lambda: [thin(0, 1), thin(1, 4), thin(2, 2)],
    "wide": lambda: [thin(0, 20), thin(1, 14)],
    "bf16": lambda: [thin(seed, dtype=torch.bfloat16) for seed in range(2)],
    "dense": lambda: [full(0), full(1)],
    "mixed": lambda: [thin(0), full(1)],
    "both": lambda: [Delta(thin(0).factors, None, full(1).matrix), thin(2)],
}


@pytest.mark.parametrize("signs", [[1, 1, 1], [1, -0.5, 2]])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", ORACLES)
def test_a_rule_is_its_dense_definition(rule, kind, signs):
    deltas = KINDS[kind]()
    weights = signs[: len(deltas)]
    options, oracle = ORACLES[rule]
    expected = oracle([weight * dense(delta) for weight, delta in zip(weights, deltas, strict=True)])
    assert far(dense(merged(deltas, rule, weights, **options)), expected) < 1e-6


@pytest.mark.parametrize("rule", ["add", "tsv", "knots", "iso-c"])
def test_thin_changes_stay_thin(rule):
    assert merged([thin(0), thin(1)], rule).is_thin


@pytest.mark.parametrize("delta", [thin(0), full(0)], ids=["thin", "dense"])
@pytest.mark.parametrize("rule", ["add", "ties", "dare", "tsv", "knots"])
def test_one_update_is_what_it_was(rule, delta):
    options = {"density": 1.0} if "density" in RULES[rule].settings else {}
    assert far(dense(merged([delta], rule, **options)), dense(delta)) < 1e-6


@pytest.mark.parametrize("rule", RULES)
def test_what_multiplies_the_backbone_is_merged_as_the_dense_change_that_it_is(rule):
    base = gaussian(7, OUT, INTO)
    parts = Delta(thin(0).factors, thin(1).factors)
    found = merged([parts, thin(2)], rule, [1, -0.5], base={PATH: base})
    expected = merged([Delta(matrix=parts.dense(base)), thin(2)], rule, [1, -0.5])
    assert far(dense(found, base), dense(expected)) < 1e-6


def test_addition_keeps_what_multiplies_the_backbone_apart():
    found = merged([Delta(thin(0).factors, thin(1).factors), Delta(None, thin(2).factors)])
    assert (found.factors.left.shape[1], found.hadamard.left.shape[1], found.matrix) == (3, 6, None)


@pytest.mark.parametrize("kind", ["thin", "both"])
def test_a_sum_of_a_rank_is_the_nearest_and_its_error_is_stated(kind):
    deltas = KINDS[kind]()
    result = merge(updates(*deltas), rank=2)
    total = torch.stack([dense(delta) for delta in deltas]).sum(0)
    u, sigma, vt = torch.linalg.svd(total)
    found = result.update.changes[PATH]
    assert found.rank == 2
    assert far(dense(found), u[:, :2] @ torch.diag(sigma[:2]) @ vt[:2]) < 1e-6
    assert result.errors[PATH] == pytest.approx(float(sigma[2:].norm() / sigma.norm()), rel=1e-6)


def test_an_energy_picks_the_rank():
    total = torch.stack([dense(thin(0)), dense(thin(1))]).sum(0)
    shares = torch.linalg.svdvals(total).square().cumsum(0) / total.square().sum()
    assert merged([thin(0), thin(1)], energy=0.8).rank == int((shares < 0.8).sum()) + 1


def test_a_rank_is_shared_by_tasks_alike():
    large = thin(0).scaled(100)
    found = merged([large, thin(1)], "tsv", rank=4)
    assert far(dense(found), dense_tsv([dense(large), dense(thin(1))], 2)) < 1e-6


def test_tasks_that_are_one_count_once():
    u, sigma, v = thin(0).svd()
    once = (u * sigma) @ v.T
    assert far(dense(merged([thin(0), thin(0)], "tsv")), once) < 1e-6


def test_a_copy_with_a_weight_adds_no_direction():
    flat = dense(merged([thin(0), thin(0)], "iso-c", [1, 0.3]))
    assert far(flat, 1.3 * dense(merged([thin(0)], "iso-c"))) < 1e-5


@pytest.mark.parametrize("rule", RULES)
def test_changes_that_are_zero_give_zero(rule):
    nothing = Delta(Pair(torch.zeros(OUT, 2), gaussian(0, 2, INTO)))
    result = merged([nothing, nothing], rule)
    assert not dense(result).any()
    assert result.rank >= 1


@pytest.mark.parametrize("rule", RULES)
def test_a_path_that_one_update_lacks_is_zero_there(rule):
    given = updates(thin(0), thin(1))
    given["more"] = Update({"model.layers.1.mlp.up": thin(2)})
    found = merge(given, rule).update.changes
    assert far(dense(found[PATH]), dense(merged([thin(0), thin(1)], rule))) < 1e-6
    assert "model.layers.1.mlp.up" in found


def test_dare_keeps_a_share_and_rescales_it():
    delta = Delta(matrix=torch.ones(200, 300))
    found = merged([delta], "dare", density=0.25).matrix
    assert set(found.unique().tolist()) == {0.0, 4.0}
    # Six standard deviations.
    assert abs(float((found > 0).float().mean()) - 0.25) < 6 * math.sqrt(0.25 * 0.75 / found.numel())


def test_dare_is_the_sum_of_each_alone_at_its_place():
    both = dense(merged([full(0), full(1)], "dare"))
    first = dense(merged([full(0), full(1)], "dare", [1, 0]))
    second = dense(merged([full(0), full(1)], "dare", [0, 1]))
    assert far(first + second, both) < 1e-6


@pytest.mark.parametrize("other", [{"seed": 1}, {"path": "model.layers.1.mlp.up"}])
def test_dare_draws_anew_for_another_seed_or_layer(other):
    path = other.pop("path", PATH)
    changes = merge({"a": Update({path: full(0)})}, "dare", **other).update.changes
    assert not torch.equal(changes[path].matrix, merged([full(0)], "dare").matrix)


def test_dare_draws_the_same_again():
    assert torch.equal(merged([full(0)], "dare").matrix, merged([full(0)], "dare").matrix)


def test_entries_of_one_size_are_kept_together():
    assert torch.equal(merged([Delta(matrix=torch.ones(3, 4))], "ties").matrix, torch.ones(3, 4))


def test_inputs_stay_as_they_are():
    matrix = gaussian(0, OUT, INTO)
    for rule in RULES:
        merged([Delta(matrix=matrix)], rule)
    assert torch.equal(matrix, gaussian(0, OUT, INTO))


def heads(seed, **more):
    whole = {"classifier.weight": gaussian(seed, 2, 4), **more}
    return Update({PATH: thin(seed)}, whole)


def test_heads_are_those_of_the_first_that_has_some():
    given = {"none": Update({PATH: thin(3)}), "a": heads(0), "b": heads(1)}
    result = merge(given).update
    assert torch.equal(result.whole["classifier.weight"], gaussian(0, 2, 4))
    assert result.origin["heads_of"] == "a"


def test_heads_are_those_of_the_source_that_is_named():
    result = merge({"a": heads(0, **{"qa_outputs.bias": torch.ones(2)}), "b": heads(1)}, heads_of="b").update
    assert result.whole.keys() == {"classifier.weight"}
    assert torch.equal(result.whole["classifier.weight"], gaussian(1, 2, 4))


@pytest.mark.parametrize("within", ["on_top_of", "sources"])
def test_what_counts_twice_is_told(caplog, within):
    """One of the sources has the other in it, by the path that it had."""
    (_, first), (_, second) = updates(thin(0), thin(1)).items()
    stacked = dataclasses.replace(second, origin={within: {os.path.abspath("a"): {}}})
    merge({"a": first, "b": stacked})
    assert "what is in a is in b too, and counts twice" in caplog.text


def test_heads_that_are_left_out_are_named(caplog):
    merge({"a": heads(0), "b": heads(1)})
    assert "those of b are left out" in caplog.text


@pytest.mark.parametrize("second", [{}, {"model.norm.weight": torch.ones(4)}], ids=["one's alone", "the same"])
def test_a_norm_that_nobody_else_has_otherwise_is_kept(second):
    given = {"a": Update({PATH: thin(0)}, {"model.norm.weight": torch.ones(4)}), "b": Update({PATH: thin(1)}, second)}
    assert torch.equal(merge(given).update.whole["model.norm.weight"], torch.ones(4))


def test_biases_without_any_change_are_not_heads():
    name = "bert.encoder.layer.0.bias"
    with pytest.raises(InputError, match=f"a and b each trained {name}"):
        merge({"a": Update({}, {name: torch.ones(4)}), "b": Update({}, {name: torch.zeros(4)})})


def test_norms_that_differ_are_refused():
    name = "model.norm.weight"
    given = {
        source: Update({PATH: thin(0)}, {name: torch.full((4,), value)}) for source, value in (("a", 1.0), ("b", 2.0))
    }
    with pytest.raises(InputError, match=f"a and b each trained {name}"):
        merge(given)


def test_what_is_known_of_the_backbone_is_kept():
    given = {"a": Update({PATH: thin(0)}), "b": Update({PATH: thin(1)}, {}, "bert", "d1")}
    result = merge(given, weights=[2, 1]).update
    assert (result.backbone, result.digest, result.origin["weights"]) == ("bert", "d1", [2, 1])


REFUSED = {
    "a rule": ({"rule": "tie"}, "there is no rule tie; did you mean ties?"),
    "a setting of another rule": ({"rule": "tsv", "density": 0.5}, "density is not for tsv, but for ties, dare, knots"),
    "an unknown setting": ({"depth": 0.5}, "depth is not for add"),
    "a density of 0": ({"rule": "ties", "density": 0.0}, "density must be finite and above 0"),
    "a density above 1": ({"rule": "ties", "density": 1.5}, "density must be at most 1"),
    "too few weights": ({"weights": [1]}, "1 weights for 2 sources"),
    "weights of 0": ({"weights": [0, 0]}, "not all of them 0"),
    "an infinite weight": ({"weights": [1, math.inf]}, "weights are finite"),
    "a rank of 0": ({"rank": 0}, "rank must be at least 1"),
    "an energy above 1": ({"energy": 2.0}, "energy must be at most 1"),
    "heads of a stranger": ({"heads_of": "x"}, "heads of x, which is none of the sources"),
}


@pytest.mark.parametrize(("options", "said"), REFUSED.values(), ids=REFUSED)
def test_settings_that_cannot_be_used_are_refused(options, said):
    with pytest.raises(InputError, match=said.replace("?", r"\?")):
        merge(updates(thin(0), thin(1)), **options)


def test_no_update_is_refused():
    with pytest.raises(InputError, match="no update"):
        merge({})


def test_other_backbones_are_refused():
    with pytest.raises(InputError, match="a and b are adapters of different backbones"):
        merge({name: Update({PATH: thin(0)}, digest=name) for name in "ab"})


@pytest.mark.parametrize("options", [{"rule": "ties"}, {"rank": 2}])
def test_what_multiplies_the_backbone_needs_it(options):
    given = updates(Delta(None, thin(0).factors), thin(1))
    with pytest.raises(InputError, match="say where the backbone lies"):
        merge(given, **options)


def test_a_bar_is_shown_after_two_seconds(monkeypatch):
    seconds = iter(range(0, 100, 3))
    monkeypatch.setattr(merging_module.time, "monotonic", lambda: next(seconds))
    started = []
    monkeypatch.setattr(merging_module.Progress, "start", lambda self: started.append(self))
    merge(updates(thin(0)))
    assert started


MISTAKEN = {
    "a a --output x": "a is given twice",
    "a b --weights 1,x --output x": "'1,x' is no list of numbers",
    "a b --rule iso-c --seed 1 --output x": "seed is not for iso-c, but for dare",
    "a b --energy 0 --output x": "energy must be finite and above 0",
    "a b --wieghts 1,1 --output x": "did you mean --weights?",
}


@pytest.mark.parametrize("line", MISTAKEN)
def test_mistakes_are_told_before_anything_is_read(line):
    with pytest.raises(InputError) as raised:
        merge_command.run(line.split())
    assert MISTAKEN[line] in str(raised.value)
