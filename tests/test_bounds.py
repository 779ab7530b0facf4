"""Bounds on singular values, however they are said, against float64."""

import pytest
import torch
from conftest import ARCHITECTURES

from lit_spectral.adapters import adapters, find_targets
from lit_spectral.errors import InputError
from lit_spectral.methods import SORSA, FCLoRA, HiPLoRA, LoRA, PiSSA, ProjLoRA
from lit_spectral.updates import Delta, Pair, Update
from lit_spectral.updates.backbone import Backbone
from lit_spectral.updates.mending import mend

# Where a method takes a bound, and where its adapter has it.
BOUNDED = {
    "LoRA": (lambda bound: LoRA(rank=4, ball=bound), "ball_radius"),
    "FCLoRA": (lambda bound: FCLoRA(rank=4, sigma_bar=bound), "sigma_bar"),
    "FCLoRA from zero": (lambda bound: FCLoRA(rank=4, sigma_bar=bound, start="zero"), "sigma_bar"),
    "FCLoRA in a ball": (lambda bound: FCLoRA(rank=4, ball=bound), "ball_radius"),
    "ProjLoRA": (lambda bound: ProjLoRA(rank=4, principal_rank=4, ball=bound), "ball_radius"),
    "HiPLoRA": (lambda bound: HiPLoRA(rank=4, principal_rank=4, ball=bound), "ball_radius"),
    "PiSSA": (lambda bound: PiSSA(rank=4, ball=bound), "ball_radius"),
    "SORSA": (lambda bound: SORSA(rank=4, ball=bound), "ball_radius"),
}


def answers(encoder, layer):
    """rms‖W₀ x‖ / rms‖x‖ over what a map is given on the random tokens, from its outputs, all calls together."""
    given, answered = [], []

    def note(layer, args, out):
        given.append(args[0].double().flatten(0, -2))
        answered.append(out.double().flatten(0, -2) - layer.bias.double())

    hook = layer.register_forward_hook(note)
    with torch.no_grad():
        encoder.eval()(torch.randint(64, (8, 32), generator=torch.Generator().manual_seed(0)))
    hook.remove()
    return float(torch.cat(answered).norm() / torch.cat(given).norm())


EXPECTED = {
    "q2": lambda encoder, layer: torch.linalg.svdvals(layer.weight.detach().double()).quantile(0.5),
    "{'of_norm': 0.05}": lambda encoder, layer: 0.05 * torch.linalg.matrix_norm(layer.weight.detach().double(), 2),
    "{'of_outputs': 0.1}": lambda encoder, layer: 0.1 * answers(encoder, layer),
}
BOUNDS = {"q2": "q2", "{'of_norm': 0.05}": {"of_norm": 0.05}, "{'of_outputs': 0.1}": {"of_outputs": 0.1}}


CASES = [("bert", method, bound) for method in BOUNDED for bound in BOUNDS]
CASES += [(architecture, "LoRA", "{'of_outputs': 0.1}") for architecture in ("gpt2", "albert")]


@pytest.mark.parametrize(("architecture", "method", "bound"), CASES)
def test_a_bound_by_each_map_is_that_of_the_map_wherever_a_method_takes_one(architecture, method, bound):
    torch.manual_seed(0)
    model = ARCHITECTURES[architecture]()
    expected = {id(m): EXPECTED[bound](model.base_model, m) for m in find_targets(model.base_model, None).values()}
    make, where = BOUNDED[method]
    make(BOUNDS[bound]).apply(model, model.base_model)
    for adapter in adapters(model):
        assert getattr(adapter, where) == pytest.approx(float(expected[id(adapter.base_layer)]), rel=1e-5)


def test_of_its_inputs_a_map_answers_no_more_by_its_change_than_that_part(backbone_folder):
    """The nearest change in the ball, large before."""
    backbone, path = Backbone(backbone_folder("llama")), "model.layers.1.mlp.down_proj"
    delta = Delta(Pair(torch.randn(32, 4), torch.randn(4, 48)))
    update = Update({path: delta}, {}, backbone.name)
    mended = mend(update, "ball", {"of_outputs": 0.1}, backbone).changes[path].dense(dtype=torch.float64)
    encoder = ARCHITECTURES["llama"]().from_pretrained(backbone.name).base_model
    given = []
    layer = encoder.layers[1].mlp.down_proj
    layer.register_forward_pre_hook(lambda _, args: given.append(args[0].detach().double().flatten(0, -2)))
    encoder(torch.randint(64, (8, 128), generator=torch.Generator().manual_seed(0)))
    (x,) = given
    weight = layer.weight.detach().double()
    assert (x @ mended.mT).norm() <= 0.1 * (x @ weight.mT).norm() * (1 + 1e-5)
    bound = 0.1 * (x @ weight.mT).norm() / x.norm()
    assert float(torch.linalg.matrix_norm(mended, 2)) == pytest.approx(float(bound), rel=1e-5)


def test_a_part_of_the_norm_is_that_after_training_too():
    weight = torch.randn(24, 16)
    update = Update({"a": Delta(Pair(torch.randn(24, 4), torch.randn(4, 16)))}, {}, "x")
    mended = mend(update, "ball", {"of_norm": 0.05}, Backbone("x", {"a": weight})).changes["a"]
    norms = [float(torch.linalg.matrix_norm(each.double(), 2)) for each in (mended.dense(), weight)]
    assert norms[0] == pytest.approx(0.05 * norms[1], rel=1e-5)


@pytest.mark.parametrize(
    ("bound", "message"),
    [
        (0.0, "must be finite and above 0"),
        (-1.0, "must be finite and above 0"),
        (float("inf"), "must be finite and above 0"),
        ("q5", "a bound is a number, q1, q2, q3, q4, {quantile"),
        ({"quantil": 1.0}, "a bound by each map is written {quantile"),
        ({"of_norm": 0.1, "of_outputs": 0.1}, "a bound by each map is written {quantile"),
        ({}, "a bound by each map is written {quantile"),
        ({"quantile": 1.5}, "a quantile lies between 0 and 1, not 1.5"),
        ({"of_norm": 0.0}, "of_norm is finite and above 0"),
        ({"of_outputs": float("nan")}, "of_outputs is finite and above 0"),
    ],
)
@pytest.mark.parametrize("method", ["LoRA", "FCLoRA"])
def test_a_bad_bound_is_refused(method, bound, message):
    model = ARCHITECTURES["bert"]()
    with pytest.raises(InputError, match=message):
        BOUNDED[method][0](bound).apply(model, model.base_model)


@pytest.mark.parametrize("bound", ["q1", {"of_norm": 0.1}, {"of_outputs": 0.1}])
def test_a_bound_that_comes_to_0_is_refused(bound):
    model = ARCHITECTURES["bert"]()
    torch.nn.init.zeros_(model.base_model.encoder.layer[0].attention.self.query.weight)
    with pytest.raises(InputError, match=r"^encoder.layer.0.attention.self.query: a bound .* above 0, .* not 0 \("):
        LoRA(rank=4, ball=bound).apply(model, model.base_model)
