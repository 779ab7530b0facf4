"""Repairs after training, each against dense float64."""

import re

import pytest
import torch

from lit_spectral.errors import InputError
from lit_spectral.methods.spectra import Spectra
from lit_spectral.updates import Delta, Pair, Update, intruders
from lit_spectral.updates.backbone import Backbone
from lit_spectral.updates.mend_command import _parse
from lit_spectral.updates.mending import mend
from lit_spectral.updates.show_command import layers
from lit_spectral.updates.sizes import size_of

SHAPES = {"a": (24, 16), "b": (12, 20)}


def drawn(seed=0, kind="thin", rank=4, size=1.0):
    """An update of two maps, and their backbone."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    def pair(out, into):
        return Pair(size * normal(out, rank), normal(rank, into))

    def delta(out, into):
        if kind == "thin":
            return Delta(pair(out, into))
        return Delta(pair(out, into), pair(out, into)) if kind == "hadamard" else Delta(matrix=size * normal(out, into))

    changes = {path: delta(*shape) for path, shape in SHAPES.items()}
    backbone = Backbone("x", {path: normal(*shape) for path, shape in SHAPES.items()})
    return Update(changes, {"head.weight": normal(2, 3)}, "x"), backbone


def dense(update, backbone):
    return {path: delta.dense(backbone.weights[path], torch.float64) for path, delta in update.changes.items()}


def with_values(matrix, change):
    u, sigma, vt = torch.linalg.svd(matrix, full_matrices=False)
    return (u * change(sigma)) @ vt


def without_leading(matrix, weight, rank):
    u, _, vt = torch.linalg.svd(weight.double(), full_matrices=False)
    u, v = u[:, :rank], vt[:rank].mT
    return (torch.eye(len(u)) - u @ u.mT) @ matrix @ (torch.eye(len(v)) - v @ v.mT)


def clipped(sigma):
    ordered = sigma[sigma > 1e-6 * sigma[0]]
    return sigma.clamp_max(1.2 * float(ordered[len(ordered) // 2]))


def truncated(matrix, rank):
    return with_values(matrix, lambda sigma: sigma * (torch.arange(len(sigma)) < rank))


def kept(sigma):
    shares = [float(sigma[: n + 1].square().sum() / sigma.square().sum()) for n in range(len(sigma))]
    return next(n for n, share in enumerate(shares) if share >= 0.7) + 1


REFERENCES = {
    "scale": (0.25, lambda d, w: 0.25 * d),
    "ball": (3.0, lambda d, w: with_values(d, lambda s: s.clamp_max(3.0))),
    "ball by quantile": (
        "q2",
        lambda d, w: with_values(d, lambda s: s.clamp_max(float(torch.linalg.svdvals(w.double()).quantile(0.5)))),
    ),
    "frobenius": (25.0, lambda d, w: d * min(1.0, 25.0 / float(d.norm()))),
    "clip": (1.2, lambda d, w: with_values(d, clipped)),
    "principal_rank": (3, lambda d, w: without_leading(d, w, 3)),
    "rank": (2, lambda d, w: truncated(d, 2)),
    "energy": (0.7, lambda d, w: truncated(d, kept(torch.linalg.svdvals(d)))),
}


@pytest.mark.parametrize("kind", ["thin", "hadamard", "dense"])
@pytest.mark.parametrize("repair", REFERENCES)
def test_a_repair_is_what_it_is_of_dense_matrices(repair, kind):
    update, backbone = drawn(kind=kind)
    value, reference = REFERENCES[repair]
    mended = dense(mend(update, repair.split()[0], value, backbone), backbone)
    for path, matrix in dense(update, backbone).items():
        expected = reference(matrix, backbone.weights[path])
        assert float((mended[path] - expected).norm()) <= 2e-6 * float(matrix.norm())


@pytest.mark.parametrize("repair", [*REFERENCES, "intruders"])
def test_what_is_thin_stays_thin_and_what_was_trained_whole_as_it_is(repair):
    update, backbone = drawn()
    mended = mend(update, repair.split()[0], REFERENCES.get(repair, (0.6,))[0], backbone)
    assert all(delta.is_thin and delta.rank <= 4 for delta in mended.changes.values())
    assert torch.equal(mended.whole["head.weight"], update.whole["head.weight"])


def intruding(matrix, weight, threshold, among):
    """Left singular vectors of W₀ + ΔW that are like none of W₀'s, by two full decompositions."""
    u = torch.linalg.svd(weight.double() + matrix, full_matrices=False)[0][:, :among]
    own = torch.linalg.svd(weight.double(), full_matrices=False)[0]
    return u[:, (own.mT @ u).abs().amax(0) < threshold]


@pytest.mark.parametrize("kind", ["thin", "hadamard", "dense"])
@pytest.mark.parametrize("threshold", [0.6, 0.75, 0.9])
def test_no_intruders_are_left(threshold, kind):
    update, backbone = drawn(kind=kind)
    mended = dense(mend(update, "intruders", threshold, backbone), backbone)
    for path, matrix in dense(update, backbone).items():
        weight = backbone.weights[path]
        assert intruding(matrix, weight, threshold, 10).shape[1]
        left = intruding(mended[path], weight, threshold, 10)
        # What W₀ + ΔW has of its own that is like none of W₀'s, and that ΔW has no part in, isn't ΔW's to mend.
        assert float((left.mT @ mended[path]).norm()) <= 1e-5 * float(matrix.norm())


def test_one_intruder_is_taken_out_by_its_projection_whatever_is_known_of_the_backbone():
    """All of W₀'s vectors, or its three leading ones: the rest is computed where these leave it open."""
    weight = torch.diag(torch.linspace(10, 1, 12))
    mixed = torch.zeros(12)
    mixed[4:] = 8**-0.5  # like none of the axes
    delta = Delta(Pair(30 * mixed[:, None], torch.ones(1, 12) / 12**0.5))
    expected = delta.dense(dtype=torch.float64)
    found = intruding(expected, weight, 0.6, 1)
    expected -= found @ found.mT @ expected
    for known in (3, 12):
        mended = intruders.without_intruders(delta, weight, torch.eye(12)[:, :known], 0.6, among=1)
        torch.testing.assert_close(mended.dense(dtype=torch.float64), expected, atol=1e-5, rtol=0)


def test_the_whole_basis_is_not_computed_where_the_leading_vectors_show_it(monkeypatch):
    monkeypatch.setattr(intruders, "_all_left", None)  # which fails
    delta = Delta(Pair(torch.full((12, 1), 1e-4), torch.ones(1, 12)))
    weight = torch.diag(torch.linspace(10, 1, 12))
    assert intruders.without_intruders(delta, weight, torch.eye(12)[:, :6], 0.6, among=4) is delta


@pytest.mark.parametrize("repair", ["ball", "ball by quantile", "frobenius", "clip", "principal_rank", "intruders"])
def test_mending_twice_is_mending_once(repair):
    update, backbone = drawn()
    name, value = repair.split()[0], REFERENCES.get(repair, (0.6,))[0]
    once = mend(update, name, value, backbone)
    first, second = dense(once, backbone), dense(mend(once, name, value, backbone), backbone)
    for path in first:
        torch.testing.assert_close(second[path], first[path], atol=3e-6, rtol=0)


@pytest.mark.parametrize(("name", "value"), [("scale", 1.0), ("ball", float("inf")), ("frobenius", 1e9), ("clip", 1e9)])
def test_these_change_nothing(name, value):
    update, backbone = drawn()
    before, after = dense(update, backbone), dense(mend(update, name, value, backbone), backbone)
    assert all(torch.equal(after[path], before[path]) for path in before)


def test_inputs_that_are_shared_are_answered_by_nothing(monkeypatch):
    update, backbone = drawn()
    bases = {path: torch.linalg.qr(torch.randn(shape[1], 2))[0] for path, shape in SHAPES.items()}
    monkeypatch.setattr(Spectra, "input_directions", lambda spectra, name, count: bases[name])
    mended = dense(mend(update, "input_rank", 2, backbone), backbone)
    for path, matrix in dense(update, backbone).items():
        v = bases[path].double()
        torch.testing.assert_close(mended[path], matrix - matrix @ v @ v.mT, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("architecture", "path"), [
    ("bert", "bert.encoder.layer.0.attention.self.query"),
    ("llama", "model.layers.1.mlp.down_proj"),
])  # fmt: skip
def test_input_directions_are_those_of_a_map_by_its_path_in_the_full_model(backbone_folder, architecture, path):
    into = 48 if "down" in path else 32
    backbone = Backbone(backbone_folder(architecture))
    basis = backbone.spectra({path: Delta(matrix=torch.zeros(32, into))}).input_directions(path, 2)
    assert basis.shape == (into, 2)
    torch.testing.assert_close(basis.mT @ basis, torch.eye(2), atol=1e-5, rtol=0)


def test_the_origin_tells_repairs_in_their_order():
    update, backbone = drawn()
    for name, value in (("scale", 0.5), ("ball", "q2")):
        update = mend(update, name, value, backbone)
    assert update.origin["mended"] == ["scale 0.5", "ball q2"]


def test_flags_are_repairs_in_their_order_and_may_come_twice():
    flags = ["--ball=q2", "--scale", "-2", "--intruders", "--rank", "3", "--ball={quantile: 0.6}", "--scale=.5"]
    expected = [("ball", "q2"), ("scale", -2.0), ("intruders", 0.6), ("rank", 3), ("ball", {"quantile": 0.6})]
    assert _parse(["x", "--output=y", *flags]).repairs == [*expected, ("scale", 0.5)]


def test_order_matters():
    update, backbone = drawn()
    first = mend(mend(update, "scale", 2.0, backbone), "ball", 3.0, backbone)
    last = mend(mend(update, "ball", 3.0, backbone), "scale", 2.0, backbone)
    norms = [float(each.changes["a"].singular_values()[0]) for each in (first, last)]
    assert norms == pytest.approx([3.0, 6.0], rel=1e-5)


MISTAKES = [
    (None, "no repair is given; there are --scale, --ball"),
    ("--scale=x", "scale is a number, not x"),
    ("--scale=nan", "scale is a number, not nan"),
    ("--ball=0", "ball is above 0, not 0"),
    ("--ball=q5", "ball: a bound is a number, q1, q2, q3, q4, {quantile: 0.6}, {of_norm: 0.05} or {of_outputs: 0.1}, "),
    ("--ball={of_norm: 0}", "of_norm is finite and above 0, and below 1e+18, not 0; give 0.1, q2"),
    ("--ball={norm: 0.1}", "ball: a bound by each map is written {quantile: 0.6}, {of_norm: 0.05}"),
    ("--ball={quantile: 2}", "a quantile lies between 0 and 1, not 2; give 0.1, q2"),
    ("--ball={quantile: x}", "ball: {quantile: x} can't be read"),
    ("--frobenius=0", "frobenius is a number above 0, not 0"),
    ("--clip=0.5", "clip is a number at least 1, not 0.5"),
    ("--intruders=0", "intruders is a number above 0 and at most 1, not 0"),
    ("--principal_rank=0", "principal_rank is a whole number, at least 1, not 0"),
    ("--input_rank=-1", "input_rank must be at least 0, a whole number of directions, or above 0 and below 1"),
    ("--input_rank=0", "input_rank is at least 1, or a share of energy, above 0 and below 1, not 0"),
    ("--input_rank=1.5", "input_rank must be at least 0, a whole number of directions, or above 0 and below 1"),
    ("--input_rank=x", "input_rank is a number, not x"),
    ("--rank=1.5", "rank is a whole number, at least 1, not 1.5"),
    ("--energy=2", "energy is a number above 0 and at most 1, not 2"),
    ("--bal=1", "there is no --bal; did you mean --ball?"),
    ("--to=ollama", "invalid choice: 'ollama'"),
]


@pytest.mark.parametrize(("flag", "said"), MISTAKES)
def test_a_mistake_is_told_before_anything_is_read(flag, said):
    with pytest.raises(InputError, match=re.escape(said)):
        _parse(["nowhere", "--output=y", *([flag] if flag else [])])


@pytest.mark.parametrize(("weights", "said"), [
    (None, "doesn't say which it is for"),
    ({"a": torch.ones(24, 16)}, "it has no b, which the adapter changes"),
    ({"a": torch.ones(24, 16), "b": torch.ones(8, 8)}, "b is 8 x 8 and its change 12 x 20"),
])  # fmt: skip
@pytest.mark.parametrize(("name", "value"), [("ball", "q2"), ("principal_rank", 2), ("intruders", 0.6)])
def test_a_backbone_that_is_needed_is_the_adapters(name, value, weights, said):
    with pytest.raises(InputError, match=said):
        mend(drawn()[0], name, value, Backbone("", weights))


def test_a_ball_by_a_quantile_that_is_0_is_refused():
    update, _ = drawn()
    with pytest.raises(InputError, match=r"ball: a: a bound on .* must be finite and above 0, .* not 0 \(q1\)"):
        mend(update, "ball", "q1", Backbone("x", {path: torch.zeros(shape) for path, shape in SHAPES.items()}))


def test_more_singular_vectors_than_there_are_are_refused():
    update, backbone = drawn()
    with pytest.raises(InputError, match="b: rank 13 is above"):
        mend(update, "principal_rank", 13, backbone)


def test_more_inputs_than_there_are_are_refused():
    update, backbone = drawn()
    with pytest.raises(InputError, match="input_rank: a has 16 inputs"):
        mend(update, "input_rank", 17, backbone)


def test_a_repair_that_needs_no_backbone_asks_for_none():
    mended = mend(drawn()[0], "ball", 1.0, Backbone())
    assert size_of(mended.changes["a"].singular_values()).spectral <= 1 + 1e-5


def test_shares_of_leading_singular_vectors_are_those_of_dense_projections():
    update, backbone = drawn(kind="hadamard")
    for path, layer in layers(update.changes, backbone, 3).items():
        matrix, weight = dense(update, backbone)[path], backbone.weights[path].double()
        u, sigma, vt = torch.linalg.svd(weight)
        expected = [(u[:, :3].mT @ matrix).norm(), (matrix @ vt[:3].mT).norm()]
        shares = [float((each / matrix.norm()) ** 2) for each in expected]
        assert [layer.left_share, layer.right_share] == pytest.approx(shares, abs=1e-5)
        assert layer.backbone_norm == pytest.approx(float(sigma[0]), rel=1e-5)


def test_sizes_are_those_of_a_dense_matrix():
    delta = drawn()[0].changes["a"]
    matrix, size = delta.dense(dtype=torch.float64), size_of(delta.singular_values())
    assert size.rank == 4
    assert size.spectral == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)))
    assert size.stable_rank == pytest.approx(float(matrix.norm() / torch.linalg.matrix_norm(matrix, 2)) ** 2)
