"""Backbones whose weights are zero, tiny, huge, of rank one, of equal singular values or no numbers at all."""

import shutil

import pytest
import safetensors.torch
import torch
from conftest import Watch
from lit_spectral.callbacks import HeldBackbone
from test_methods import ALIKE, OURS

from lit_spectral.adapters import adapters
from lit_spectral.adapters.stacking import stack_factors
from lit_spectral.errors import InputError
from lit_spectral.methods import FCLoRA, HiPLoRA, LoRA, PiSSA, ProjLoRA
from lit_spectral.spectra import linalg
from lit_spectral.tasks import SequenceClassification

METHODS = OURS | {
    "LoRA in a ball": LoRA(rank=4, ball=0.5),
    "PiSSA in a ball": PiSSA(rank=4, ball=0.5),
    "FCLoRA in a ball": FCLoRA(rank=4, ball=0.5),
    "FCLoRA by Gram-Schmidt in a ball": FCLoRA(rank=4, ball=0.5, orthogonality="gram-schmidt"),
    "ProjLoRA in a ball": ProjLoRA(rank=4, principal_rank=6, ball=0.5),
    "HiPLoRA in a ball": HiPLoRA(rank=4, principal_rank=6, ball=0.5),
}


def rank_one(weight):
    return weight[:, :1] @ weight[:1] * 20


def equal_values(weight):
    u, _, vt = torch.linalg.svd(weight, full_matrices=False)
    return 0.3 * u @ vt


def with_one(value):
    def change(weight):
        weight[0, 0] = value
        return weight

    return change


KINDS = {
    "0": lambda weight: 0 * weight,
    "1e-28": lambda weight: 1e-27 * weight,
    "1e31": lambda weight: 1e32 * weight,
    "rank 1": rank_one,
    "equal values": equal_values,
    "NaN": with_one(torch.nan),
    "infinity": with_one(torch.inf),
}
OPTIMIZERS = {"default": {"lr": 4e-4}, "diverging": {"lr": 1e3}, "diverging and decaying": {"lr": 1e3, "decay": 0.01}}
# On every run the hardest of each set; all of them where there is time.
QUICK = {"ProjLoRA in a ball", "HiPLoRA in a ball", "LoRA in a ball"}


def differs(name, kind, how):
    """Whether a run can end otherwise than that of another row.

    Weights that are no numbers are refused when they are read, before there is a method or an optimizer. Decay of
    10 a step makes larger numbers, of both signs, than the rate alone.
    """
    if kind in {"NaN", "infinity"} or how == "diverging":
        return name in QUICK
    return name not in ALIKE or how == "diverging and decaying"


TABLE = [
    pytest.param(
        *(method, kind, optimizer),
        id=f"{name}, {kind}, {how}",
        marks=[] if name in QUICK and how == "diverging and decaying" else pytest.mark.slow,
    )
    for name, method in METHODS.items()
    for kind in KINDS
    for how, optimizer in OPTIMIZERS.items()
    if differs(name, kind, how)
]


@pytest.fixture(scope="session")
def odd_folder(backbone_folder, tmp_path_factory):
    """From a kind to the folder of tiny BERT with such weights of all its linear maps."""
    root = tmp_path_factory.mktemp("odd")

    def folder(kind):
        path = root / kind
        if not path.exists():
            shutil.copytree(backbone_folder("bert"), path)
            weights = safetensors.torch.load_file(path / "model.safetensors")
            for name, weight in weights.items():
                if ".encoder." in name and weight.ndim == 2:
                    weights[name] = KINDS[kind](weight.clone()).contiguous()
            safetensors.torch.save_file(weights, path / "model.safetensors", {"format": "pt"})
        return str(path)

    return folder


def outside(adapter):
    """How far an adapter is from the sets that it declares, each as a share of what is allowed."""
    for bound in adapter.bounded:
        yield "range", float((bound.tensor - bound.upper).max().clamp_min((bound.lower - bound.tensor).max()))
    for columns, basis in adapter.confined:
        x = columns.detach().double()
        yield "subspace", float((basis.double().mT @ x).norm() / x.norm().clamp_min(1e-300)) / 1e-5 - 1
    if adapter.retracted:
        for columns in adapter.orthonormal:
            yield "orthonormal", float(linalg.orthogonality_error(columns.detach().double()[None])) / 1e-5 - 1
    if adapter.ball_radius is not None:
        (left,), (right,) = stack_factors([adapter.factors()])
        norm = float(torch.linalg.matrix_norm(left.detach().double() @ right.detach().double(), ord=2))
        yield "ball", norm / adapter.ball_radius / (1 + 1e-3) - 1
    for parameter in adapter.parameters():
        if parameter.requires_grad:
            yield "finite", 0.0 if parameter.isfinite().all() else torch.inf


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("method", "kind", "optimizer"), TABLE)
def test_sets_are_held_or_the_run_ends(odd_folder, train, method, kind, optimizer):
    def make(params):
        return torch.optim.AdamW(params, lr=optimizer["lr"], weight_decay=optimizer.get("decay", 0.0))

    task = SequenceClassification(odd_folder(kind), method, optimizer=make)
    found = []

    def look(task):
        found.extend(pair for adapter in adapters(task.model) for pair in outside(adapter))

    ended = None
    try:
        train(method, Watch(look), HeldBackbone(enabled=False), task=task, logger=False, limit_val_batches=0)
    except InputError as error:
        ended = str(error)
    assert [(what, amount) for what, amount in found if not amount <= 0] == []
    assert found or ended or not adapters(task.model)
    if kind in {"NaN", "infinity"}:
        assert ended.startswith("backbone: ")
