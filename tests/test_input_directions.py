"""The directions that a map's inputs share, and changes that ignore them."""

import pytest
import torch
import transformers
from conftest import ARCHITECTURES, Watch
from lit_spectral.callbacks import HeldBackbone

from lit_spectral.adapters import adapters, find_targets, trained_state
from lit_spectral.errors import InputError
from lit_spectral.methods import SORSA, FCLoRA, HiPLoRA, LoRA, PiSSA, ProjLoRA
from lit_spectral.reading import Reading
from lit_spectral.spectra.input_directions import Fed, leading_input_directions
from lit_spectral.tasks import SequenceClassification


def directions(encoder, count=2, targets=None):
    return leading_input_directions(Fed(encoder, find_targets(encoder, targets)), count)


def llama():
    torch.manual_seed(0)
    return ARCHITECTURES["llama"]().base_model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_is_read(architecture):
    encoder = ARCHITECTURES[architecture]().base_model
    for name, basis in directions(encoder).items():
        assert basis.shape == (find_targets(encoder, None)[name].weight.shape[architecture != "gpt2"], 2)
        assert torch.allclose(basis.mT @ basis, torch.eye(2), atol=1e-5)


def test_a_planted_direction_is_found():
    """Every embedding with one large part in common, which no normalisation takes away."""
    encoder, common = llama(), torch.nn.functional.normalize(torch.randn(32), dim=0)
    with torch.no_grad():
        encoder.embed_tokens.weight.add_(common)
    found = directions(encoder, count=1)["layers.0.self_attn.q_proj"][:, 0]
    assert abs(float(found @ common)) > 0.99


def test_they_are_the_singular_vectors_of_what_a_map_is_given():
    encoder, seen = llama(), []
    targets = find_targets(encoder, None)
    encoder.layers[1].mlp.down_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    found = leading_input_directions(Fed(encoder, targets), 3)["layers.1.mlp.down_proj"].double()
    rows = seen[0].detach().double().reshape(-1, 48)
    expected = torch.linalg.svd(rows, full_matrices=False).Vh[:3].mT
    assert torch.linalg.svdvals(found.mT @ expected).min() > 1 - 1e-6


@pytest.mark.parametrize(("architecture", "ending"), [("albert", "query"), ("deberta", "query_proj")])
def test_a_map_that_is_used_several_times_is_taken_as_a_whole(architecture, ending):
    torch.manual_seed(0)
    encoder, seen = ARCHITECTURES[architecture]().base_model, []
    targets = find_targets(encoder, None)
    name = next(name for name in targets if name.endswith(ending))
    encoder.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().reshape(-1, 32)))
    found = leading_input_directions(Fed(encoder, targets), 1)[name].double()
    assert len(seen) > 1
    expected = torch.linalg.svd(torch.cat(seen).double(), full_matrices=False).Vh[:1].mT
    assert abs(float(found.mT @ expected)) > 0.99


def test_looking_leaves_nothing_behind():
    encoder = llama().train()
    encoder.layers[0].eval()
    before = torch.random.get_rng_state()
    first, second = directions(encoder), directions(encoder)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert encoder.training
    assert not encoder.layers[0].training
    assert not any(module._forward_pre_hooks for module in encoder.modules())
    assert torch.equal(before, torch.random.get_rng_state())


def test_what_can_not_be_looked_at_says_so():
    with pytest.raises(InputError, match=r"no token embeddings .*set input_rank: 0"):
        leading_input_directions(Fed(torch.nn.Linear(4, 4), {}), 1)
    encoder = llama()
    encoder.idle = torch.nn.Linear(32, 32)
    with pytest.raises(InputError, match=r"^idle: the model reads text without this map; leave it out of target_mod"):
        LoRA(rank=2, input_rank=1, target_modules=["idle", "q_proj"]).apply(encoder, encoder)


@pytest.mark.parametrize(
    ("model", "expected"), [("llama", True), ("gpt2", True), ("bert", False), ("deberta", False), ("mpnet", False)]
)
def test_decoders_are_told_from_encoders(model, expected):
    assert Reading(ARCHITECTURES[model]()).causal == expected


@pytest.mark.parametrize(
    "method",
    [
        LoRA(rank=4, input_rank=2),
        FCLoRA(rank=4, input_rank=2, sigma_lr=100),
        FCLoRA(rank=4, input_rank=2, sigma_lr=100, orthogonality="gram-schmidt"),
        HiPLoRA(rank=4, principal_rank=6, input_rank=2),
        HiPLoRA(rank=4, principal_rank=6, input_rank=2, project=False),
        LoRA(rank=4, input_rank=2, ball=0.03),
    ],
    ids=["LoRA", "FCLoRA", "by Gram-Schmidt", "HiPLoRA", "without projection", "in a ball"],
)
def test_a_change_ignores_them_at_every_step(method, backbone_folder, train):
    encoder = transformers.AutoModel.from_pretrained(backbone_folder("bert"))
    given = directions(encoder)
    answers = []

    def look(task):
        for name, module in task.model.base_model.named_modules():
            if name in given:
                right = module.columns()[1].detach().double().mT
                answers.append(float((right @ given[name].double()).norm() / right.norm()))

    train(method, Watch(look), HeldBackbone(enabled=False))
    assert len(answers) >= 12 * 4
    assert max(answers) < 1e-5


def test_hiplora_keeps_both_constraints(backbone_folder):
    task = SequenceClassification(
        backbone_folder("bert"), HiPLoRA(rank=4, principal_rank=6, input_rank=2), num_labels=2
    )
    task.configure_model()
    for adapter in adapters(task.model):
        assert float((adapter.v_basis.mT @ adapter.right_basis).norm()) < 1e-5


def test_directions_that_are_principal_are_held_already():
    whole = ARCHITECTURES["llama"]()
    HiPLoRA(rank=4, principal_rank=6, input_rank=0).apply(whole, whole.base_model)
    adapter = adapters(whole)[0]
    other = torch.linalg.svd(adapter.v_basis).U[:, 6:7]
    adapter.ignore_inputs(adapter.v_basis[:, :1] + 1e-6 * other)
    assert adapter.right_basis is None
    adapter.ignore_inputs(torch.cat([adapter.v_basis[:, :1], other], dim=1))
    assert adapter.right_basis.shape == (32, 1)
    assert abs(float(adapter.right_basis.mT @ other)) > 1 - 1e-5


BY_DEFAULT = [FCLoRA, HiPLoRA, ProjLoRA]


def ignored(method, model):
    """How many directions of inputs each adapter ignores, of a method that is given no number."""
    method.apply(model, getattr(model, "base_model", model))
    return [0 if a.right_basis is None else a.right_basis.shape[1] for a in adapters(model)]


@pytest.mark.parametrize("method", BY_DEFAULT)
@pytest.mark.parametrize("model", ["llama", "bert", "deberta"])
def test_by_default_each_map_ignores_one(method, model):
    counts = ignored(method(rank=4, principal_rank=6), ARCHITECTURES[model]())
    assert counts == [1] * len(counts)
    assert counts


@pytest.mark.parametrize("method", BY_DEFAULT)
def test_a_default_takes_no_room_that_there_is_not(method):
    counts = ignored(method(rank=26, principal_rank=6), ARCHITECTURES["bert"]())
    assert 0 in counts


class Routed(torch.nn.Module):
    """Two experts, of which every text goes to one; or, without embeddings, none that can be read."""

    def __init__(self, embeddings):
        super().__init__()
        self.embeddings = torch.nn.Embedding(50, 32) if embeddings else None
        self.experts = torch.nn.ModuleList([torch.nn.Linear(32, 32), torch.nn.Linear(32, 32)])

    def get_input_embeddings(self):
        return self.embeddings

    def forward(self, input_ids, attention_mask):
        return (self.experts[0](self.embeddings(input_ids)),)


@pytest.mark.parametrize("method", BY_DEFAULT)
@pytest.mark.parametrize(("embeddings", "expected"), [(True, [1, 0]), (False, [0, 0])])
def test_a_default_stops_no_model_that_can_not_be_read(method, embeddings, expected):
    targets = ["experts.0", "experts.1"]
    assert ignored(method(rank=4, principal_rank=6, target_modules=targets), Routed(embeddings)) == expected


def test_they_are_not_saved(backbone_folder):
    task = SequenceClassification(backbone_folder("bert"), LoRA(rank=4, input_rank=2), num_labels=2)
    task.configure_model()
    assert not [name for name in trained_state(task.model) if "basis" in name]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (PiSSA, "input_rank is not for methods that start at a part of W₀; set input_rank: 0"),
        (SORSA, "input_rank is not for methods that start at a part of W₀; set input_rank: 0"),
        (
            lambda **kw: HiPLoRA(**kw | {"rank": 16, "principal_rank": 16}),
            r"rank \+ principal_rank \+ input_rank = 33 is",
        ),
        (lambda **kw: LoRA(**kw | {"rank": 32}), r"rank \+ input_rank = 33 is above"),
    ],
    ids=["PiSSA", "SORSA", "no room beside principal directions", "no room"],
)
def test_where_it_does_not_go_it_says_so(method, message):
    whole = ARCHITECTURES["llama"]()
    with pytest.raises(InputError, match=rf"^layers.0.self_attn.q_proj: {message}"):
        method(rank=4, input_rank=1).apply(whole, whole.base_model)


@pytest.mark.parametrize("method", [LoRA, FCLoRA, HiPLoRA])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_whole_numbers_are_counts_though_the_command_line_makes_floats_of_them(method, count):
    assert repr(method(input_rank=float(count)).input_rank) == repr(count)


@pytest.mark.parametrize("count", [-1, -0.5, 1.5, float("nan"), float("inf")])
def test_what_is_neither_a_number_of_directions_nor_a_share_is_refused(count):
    with pytest.raises(InputError, match="input_rank must be at least 0, a whole number of directions, or above 0 and"):
        LoRA(input_rank=count)
