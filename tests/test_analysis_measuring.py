"""All measures of several adapters at once: against dense matrices, and whatever the kind of change or backbone."""

import pytest
import torch
from exporting import adapted, base, delta_of  # noqa: F401 (a fixture)
from test_mending import SHAPES, dense, drawn

from lit_spectral import adapters as ad
from lit_spectral import analysis as an
from lit_spectral import methods
from lit_spectral.adapters.linear import weight_matrix
from lit_spectral.analysis.measuring import THRESHOLDS, analyze, place_of
from lit_spectral.analysis.results import places
from lit_spectral.errors import InputError
from lit_spectral.spectra.partial_svd import partial_svd
from lit_spectral.updates import Delta, Pair, Update
from lit_spectral.updates.backbone import Backbone


@pytest.mark.parametrize(("path", "place"), [
    ("model.layers.12.self_attn.q_proj", (12, "self_attn.q_proj")),
    ("bert.encoder.layer.0.attention.output.dense", (0, "attention.output.dense")),
    ("model.layers.3.mlp.experts.7.up_proj", (3, "mlp.experts.7.up_proj")),
    ("lm_head", (None, "lm_head")),
    ("0.linear", (0, "linear")),
])  # fmt: skip
def test_a_place_is_a_layers_number_and_a_kind_of_map(path, place):
    assert place_of(path) == place


@pytest.mark.parametrize("count", [1, 5, 64, 65, 768, 4096])
def test_places_that_are_shown_have_both_ends_and_are_few(count):
    found = places(count)
    assert (found[0], found[-1]) == (0, count - 1)
    assert len(found) == len(set(found)) <= 64


def expected(matrix, weight, top):
    """Measures that need no choice of subspace, by full decompositions."""
    sigma = torch.linalg.svdvals(matrix)
    u, values, vt = torch.linalg.svd(weight.double(), full_matrices=False)
    core = u[:, :top].mT @ matrix @ vt[:top].mT
    total = matrix.square().sum()
    odd = torch.linalg.svd(weight.double() + matrix, full_matrices=False).U[:, :10]
    likeness = (u.mT @ odd).abs().amax(0)
    found = {
        "spectral": sigma[0],
        "energy": sigma.square().sum(),
        "effective_rank": an.effective_rank(sigma),
        "energy_in_top": core.square().sum() / total,
        "rho_left": (u[:, :top].mT @ matrix).square().sum() / total,
        "rho_right": (matrix @ vt[:top].mT).square().sum() / total,
        "weight_in_weight": values[:2].norm(),
        "delta_in_delta": sigma[:2].norm(),
        "delta_in_weight": core[:2, :2].norm(),
    }
    own, _, own_t = torch.linalg.svd(matrix)
    found["weight_in_delta"] = (own[:, :2].mT @ weight.double() @ own_t[:2].mT).norm()
    found["amplification"] = total.sqrt() / found["weight_in_delta"]
    found["phi_top"] = (own[:, :2].mT @ u[:, :2]).square().sum() / 2
    found["phi_bottom"] = (own[:, :2].mT @ u[:, -2:]).square().sum() / 2
    return {name: float(value) for name, value in found.items()} | {
        f"intruders_{each:g}": int((likeness < each).sum()) for each in THRESHOLDS
    }


@pytest.mark.parametrize("kind", ["thin", "hadamard", "dense"])
def test_all_measures_are_those_of_dense_matrices(kind):
    update, backbone = drawn(kind=kind)
    found = analyze({"one": update.changes}, backbone, 2, 3).changes["one"]
    for path, matrix in dense(update, backbone).items():
        measured = found[path].measures
        for name, value in expected(matrix, backbone.weights[path], 3).items():
            assert measured[name] == pytest.approx(value, rel=2e-4, abs=1e-5), name


@pytest.mark.parametrize("name", ["BERT", "Llama", "GPT-2"])
def test_every_architectures_maps_are_measured_beside_their_own_weights(name, base):
    model, _ = adapted(name, methods.LoRA(rank=2))
    changes = {path: delta_of(change) for path, change in ad.named_changes(model).items()}
    found = analyze({"one": changes}, Backbone(str(base(name))), 1, 2).changes["one"]
    for path, change in ad.named_changes(model).items():
        matrix = change.delta_weight().detach().double()
        u, _, vt = torch.linalg.svd(weight_matrix(change.base_layer).detach().double())
        share = (u[:, :2].mT @ matrix @ vt[:2].mT).square().sum() / matrix.square().sum()
        assert found[path].measures["energy_in_top"] == pytest.approx(float(share), rel=1e-3, abs=1e-6)


def test_gains_are_what_hip_lora_has_learned(base):
    model, _ = adapted("BERT", methods.HiPLoRA(rank=2, principal_rank=3))
    changes = {path: delta_of(change) for path, change in ad.named_changes(model).items()}
    found = analyze({"one": changes}, Backbone(str(base("BERT"))), 2, 3).changes["one"]
    for path, change in ad.named_changes(model).items():
        rest = change.left.detach() @ change.right.detach()
        u, v = change.u_basis, change.v_basis
        own = change.delta.detach() + change.scale * (u.mT @ rest @ v).diagonal()  # the draw was not retracted
        torch.testing.assert_close(found[path].gains.float(), own, atol=1e-5, rtol=0)


def test_sources_that_change_other_maps_stand_side_by_side():
    update, backbone = drawn()
    one, other = ({path: update.changes[path]} for path in SHAPES)
    found = analyze({"one": one, "other": other}, backbone, 2, 3)
    assert {source: list(maps) for source, maps in found.changes.items()} == {"one": ["a"], "other": ["b"]}
    assert set(found.weights) == {"a", "b"}


def test_of_a_change_of_lower_rank_all_that_it_has_is_compared():
    weight = torch.randn(10, 8, generator=torch.Generator().manual_seed(0))
    u, _, vt = torch.linalg.svd(weight.double())
    change = Delta(Pair((u[:, [7]] * 3).float().repeat(1, 2), vt[[7]].float().repeat(2, 1)))
    measured = analyze({"one": {"a": change}}, Backbone("", {"a": weight}), 2, 3).changes["one"]["a"].measures
    assert measured["phi_bottom"] == pytest.approx(1, abs=1e-5)
    assert measured["rank"] == 1


def test_a_change_that_is_0_has_sizes_alone():
    zero = Delta(Pair(torch.zeros(24, 1), torch.ones(1, 16)))
    _, backbone = drawn()
    measured = analyze({"one": {"a": zero}}, backbone, 1, 3).changes["one"]["a"].measures
    assert measured["spectral"] == measured["rank"] == measured["intruders_0.9"] == 0
    assert "phi_top" not in measured


def test_draws_are_by_the_seed_and_the_map_whatever_else_is_measured():
    update, backbone = drawn()

    def norm(changes, seed):
        return analyze({"one": changes}, backbone, 2, 3, seed).changes["one"]["a"].measures["weight_in_random"]

    alone = {"a": update.changes["a"]}
    assert norm(update.changes, 1) == norm(alone, 1) != norm(alone, 2)


def test_random_vectors_of_the_weight_are_not_those_that_a_method_drew_by_the_same_seed():
    weight = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    start = partial_svd(weight, "random", 2, seed=0).triplets
    change = Delta(Pair(start.u.float(), start.v.mT.float()))
    found = analyze({"one": {"a": change}}, Backbone("", {"a": weight}), 2, 3, seed=0).changes["one"]["a"]
    assert found.measures["phi_random"] < 1e-6


@pytest.mark.parametrize(("rank", "top", "said"), [
    (13, 3, "b is 12 x 20, and --rank is 13; give at most 12"),
    (2, 14, "b is 12 x 20, and --top is 14; give at most 12"),
])  # fmt: skip
def test_subspaces_above_a_matrix_are_refused(rank, top, said):
    update, backbone = drawn()
    with pytest.raises(InputError, match=said):
        analyze({"one": update.changes}, backbone, rank, top)


def test_another_backbone_is_refused():
    with pytest.raises(InputError, match="it has no b, which the adapter changes"):
        analyze({"one": drawn()[0].changes}, Backbone("", {"a": torch.ones(24, 16)}), 2, 3)


def test_an_update_is_left_as_it_is():
    update, backbone = drawn(kind="hadamard")
    before = Update({path: delta.to() for path, delta in update.changes.items()})
    analyze({"one": update.changes}, backbone, 2, 3)
    for path, delta in update.changes.items():
        assert all(map(torch.equal, delta.tensors(), before.changes[path].tensors()))
