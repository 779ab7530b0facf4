"""The penalty on how far a model is from its base model, against independent computations in float64."""

import lightning.pytorch as pl
import pytest
import torch
import transformers
from anchored import anchored, corpus, data, headless_folder  # noqa: F401 (fixtures)
from conftest import scalars
from lit_spectral.datamodules import masked_text
from torch.nn import functional as F

from lit_spectral.adapters import Adapter
from lit_spectral.retention import anchoring
from lit_spectral.tasks import Anchor

# Of each: the task, the text, and whether the backbone's files have the masked-language head.
CASES = [
    ("CausalLM", "prompts", True),
    ("CausalLM", "self", True),
    ("CausalLM", "corpus", True),
    ("MaskedLM", "corpus", True),
    ("SequenceClassification", "prompts", True),
    ("SequenceClassification", "corpus", True),
    ("SequenceClassification", "prompts", False),
    ("SequenceClassification", "corpus", False),
    ("QuestionAnswering", "prompts", True),
    ("QuestionAnswering", "prompts", False),
]
WEIGHT, EVERY = 3.0, 2


class Look(pl.Callback):
    """What the penalised step of LoRA computes with, and the gradients before and after the penalty."""

    def on_train_start(self, trainer, pl_module):
        self.given, self.batch = [], None
        pl_module.model.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, model, args, kwargs):
        self.given.append({k: v.clone() for k, v in kwargs.items() if isinstance(v, torch.Tensor)})

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batch = batch

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        """Before the task's own hook, which adds the penalty."""
        self.given.clear()
        found = {n: m for n, m in pl_module.encoder.named_modules() if isinstance(m, Adapter)}
        self.factors = {n: [p.detach().double().clone() for p in (m.left, m.right)] for n, m in found.items()}
        self.before = {n: [p.grad.double().clone() for p in (m.left, m.right)] for n, m in found.items()}

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.inputs = self.given[:2]  # of the base and the adapted model
        found = pl_module.encoder.get_submodule
        self.after = {n: [p.grad.double().clone() for p in (found(n).left, found(n).right)] for n in self.factors}


def reference(kind, folder, head, factors, inputs, scored):
    """D in float64 and its gradients by L and R, of models that transformers makes, whose weights are W₀ + L R."""
    makers = {"CausalLM": transformers.AutoModelForCausalLM}
    make = makers.get(kind, transformers.AutoModelForMaskedLM if head else transformers.AutoModel)
    model = make.from_pretrained(folder).double().eval()
    prefix = f"{model.base_model_prefix}." if model.base_model is not model else ""
    leaves = {name: [factor.clone().requires_grad_() for factor in pair] for name, pair in factors.items()}
    weights = dict(model.named_parameters())
    moved = {f"{prefix}{n}.weight": weights[f"{prefix}{n}.weight"].detach() + x @ y for n, (x, y) in leaves.items()}

    def outputs(changed):
        found = torch.func.functional_call(model, changed, kwargs=inputs)
        if head:
            return found.logits.log_softmax(-1)[scored]
        mask = inputs["attention_mask"].double()
        return torch.einsum("nlw,nl->nw", found.last_hidden_state, mask / mask.sum(1, keepdim=True))

    base, adapted = outputs({}).detach(), outputs(moved)
    if head:
        distance = (base.exp() * (base - adapted)).sum(-1).mean()
    else:
        distance = 1 - (F.normalize(adapted) * F.normalize(base)).sum(-1).mean()
    flat = [leaf for pair in leaves.values() for leaf in pair]
    return float(distance.detach()), torch.autograd.grad(distance, flat)


def positions(kind, text, batch, inputs, masks):
    """Which predictions count, by another way than the code's."""
    ids = inputs["input_ids"]
    if kind != "CausalLM":
        return masks[0] != -100
    scored = torch.zeros_like(ids, dtype=torch.bool)
    for row in range(len(ids)):
        length = int(inputs["attention_mask"][row].sum())
        if text == "prompts":
            length = next(i for i, label in enumerate(batch["labels"][row].tolist()) if label != -100)
        for position in range(length - 1):
            scored[row, position] = True
    return scored


@pytest.mark.parametrize(("kind", "text", "head"), CASES)
def test_value_and_gradient_are_those_of_float64(
    kind, text, head, anchored, corpus, backbone_folder, decoder_folder, headless_folder, monkeypatch
):
    masks = []

    def mask(*args):
        found = masked_text.__dict__["really"](*args)
        masks.append(found[1])
        return found

    monkeypatch.setattr(masked_text, "really", masked_text.mask_tokens, raising=False)
    for module in (masked_text, anchoring):
        monkeypatch.setattr(module, "mask_tokens", mask)
    look = Look()
    chosen = corpus if text == "corpus" else text
    settings = Anchor(WEIGHT, EVERY, chosen, limit=8, max_length=16, batch_size=8)

    class Forget(pl.Callback):
        def on_before_optimizer_step(self, *args):
            masks.clear()

    trainer = anchored(kind, settings, look, Forget(), head=head, lr=1.0)
    base, adapted = look.inputs
    assert base.keys() == adapted.keys()
    assert all(torch.equal(base[name], adapted[name]) for name in base)
    folder = decoder_folder() if kind == "CausalLM" else backbone_folder("bert") if head else headless_folder
    scored = positions(kind, text, look.batch, base, masks) if head else None
    value, gradients = reference(kind, folder, head, look.factors, base, scored)
    logged = scalars(trainer)
    assert logged["train/anchor"] == [(1, pytest.approx(value, rel=1e-3))]
    assert value > 1e-4
    added = [a - b for n in look.before for b, a in zip(look.before[n], look.after[n], strict=True)]
    ours, theirs = (torch.cat([g.flatten() for g in each]) for each in (added, gradients))
    assert float((ours - WEIGHT * EVERY * theirs).norm() / ours.norm()) < 2e-3
