"""Adapted models, their backbones on disk, and their updates made by hand, for tests of exports."""

import pytest
import torch
from zoo.models import make

from lit_spectral import adapters as ad
from lit_spectral import methods
from lit_spectral.updates import Delta, Pair, Update

TOKENS = torch.tensor([[2, 9, 30, 17, 44, 8, 3], [2, 5, 6, 7, 40, 41, 3]])
HEADS = {"BERT": "SequenceClassification", "Llama": "CausalLM", "Llama, tied": "CausalLM", "GPT-2": "CausalLM"}
LOW_RANK = {
    "LoRA": methods.LoRA(rank=4, alpha=12),
    "PiSSA": methods.PiSSA(rank=4),
    "FCLoRA": methods.FCLoRA(rank=4),
    "HiPLoRA": methods.HiPLoRA(rank=4, principal_rank=3),
    "MiLoRA": methods.MiLoRA(rank=4),
}
OTHERS = {"HiRA": methods.HiRA(rank=4), "HiRALoRA": methods.HiRALoRA(rank=4, lora_rank=3), "MoRA": methods.MoRA(rank=2)}


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=TOKENS, attention_mask=torch.ones_like(TOKENS)).logits


def assert_equal(found, expected):
    assert (found - expected).norm() <= 1e-5 * expected.norm()


@torch.no_grad()
def adapted(name, method, seed=1):
    """A model with random changes, and its head's parameters, which count as trained."""
    model = make(name, HEADS[name])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        method.apply(model, model.base_model)
    generator = torch.Generator().manual_seed(seed)
    head = dict(model.classifier.named_parameters(prefix="classifier")) if hasattr(model, "classifier") else {}
    for parameter in [*(p for p in model.parameters() if p.requires_grad), *head.values()]:
        parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model, {key: value.detach().clone() for key, value in head.items()}


def delta_of(change):
    if isinstance(change, ad.HadamardAdapter):
        added = (
            Pair((change.added_left * change.scale).detach(), change.added_right.detach())
            if hasattr(change, "added_left")
            else None
        )
        return Delta(added, Pair(change.left.detach(), change.right.detach()))
    factors = change.factors()
    if factors is None:
        return Delta(matrix=change.delta_weight())
    return Delta(Pair((factors.left * factors.scale).detach(), factors.right.detach()))


def update_of(model, whole, backbone):
    changes = {path: delta_of(change) for path, change in ad.named_changes(model).items()}
    origin = {"method": "test", "architecture": type(model).__name__}
    return Update(changes, whole, str(backbone), "", origin)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """From a model's name to its folder."""
    root = tmp_path_factory.mktemp("bases")

    def folder(name, dtype=torch.float32, **how):
        path = root / f"{name}-{dtype}-{len(how)}"
        if not path.exists():
            make(name, HEADS[name]).to(dtype).save_pretrained(path, **how)
        return path

    return folder


@pytest.fixture
def update(base):
    """Of BERT with its head, by LoRA."""
    return update_of(*adapted("BERT", LOW_RANK["LoRA"]), base("BERT"))


def decoder_update(base, **given):
    return update_of(*adapted("Llama", methods.LoRA(**{"rank": 4, **given})), base("Llama"))
