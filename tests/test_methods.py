"""Every method through the task: what must hold while it trains, and what its checkpoint brings back."""

import dataclasses

import lightning.pytorch as pl
import pytest
import torch
import transformers
from conftest import scalars
from crossing import crossed

from lit_spectral.adapters import adapters, detach, trained_state
from lit_spectral.checkpoint import load
from lit_spectral.errors import InputError
from lit_spectral.methods import (
    SORSA,
    BitFit,
    EBLoRA,
    FCLoRA,
    FullFineTuning,
    HiLoRA,
    HiPLoRA,
    HiRA,
    HiRALoRA,
    Houlsby,
    LoRA,
    LoRAPlus,
    MiLoRA,
    MoRA,
    Parallel,
    Peft,
    PiSSA,
    ProjLoRA,
    RandomSVDLoRA,
    RsLoRA,
    StelLA,
)
from lit_spectral.tasks import CausalLM, MaskedLM, SequenceClassification

OURS = {
    "LoRA": LoRA(rank=4, dropout=0.1),
    "LoRA that ignores inputs": LoRA(rank=4, input_rank=2),
    "RsLoRA": RsLoRA(rank=4),
    "LoRAPlus": LoRAPlus(rank=4),
    "PiSSA": PiSSA(rank=4),
    "MiLoRA": MiLoRA(rank=4),
    "RandomSVDLoRA": RandomSVDLoRA(rank=4),
    "SORSA": SORSA(rank=4),
    "FCLoRA": FCLoRA(rank=4),
    "FCLoRA by Gram-Schmidt": FCLoRA(rank=4, orthogonality="gram-schmidt", principal_rank=6),
    "HiLoRA": HiLoRA(rank=4),
    "HiRA": HiRA(rank=4),
    "HiRA with dropout": HiRA(rank=4, dropout=0.1),
    "HiRA uniform": HiRA(rank=4, reference="uniform"),
    "HiRA truncated": HiRA(rank=4, reference="truncated", reference_rank=3),
    "HiRA neighbours": HiRA(rank=4, reference="neighbours"),
    "HiRALoRA": HiRALoRA(rank=4),
    "ProjLoRA": ProjLoRA(rank=4, principal_rank=6),
    "HiPLoRA": HiPLoRA(rank=4, principal_rank=6),
    "StelLA": StelLA(rank=4),
    "EBLoRA": EBLoRA(rank=4),
    "MoRA": MoRA(rank=4),
    "FullFineTuning": FullFineTuning(),
    "BitFit": BitFit(),
}
PEFT = {
    "DoRA": Peft(config={"peft_type": "LORA", "r": 4, "use_dora": True}),
    "AdaLoRA": Peft(
        config={"peft_type": "ADALORA", "init_r": 6, "target_r": 3, "tinit": 2, "tfinal": 4, "total_step": 24}
    ),
    "FourierFT": Peft(config={"peft_type": "FOURIERFT", "n_frequency": 20}),
    "prompt tuning": Peft(config={"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4}),
    "P-tuning": Peft(config={"peft_type": "P_TUNING", "num_virtual_tokens": 4, "encoder_hidden_size": 8}),
    "prefix tuning": Peft(config={"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4}),
}
# Which have no ΔW; Pfeiffer and Series have Houlsby's in other places.
BOTTLENECKS = {"Houlsby": Houlsby(width=4, dropout=0.1), "Parallel": Parallel(width=4)}
METHODS = OURS | PEFT | BOTTLENECKS
# Whose adapters are those of another, but for a number or the singular pairs that they start with.
ALIKE = {"RsLoRA": "LoRA", "LoRAPlus": "LoRA", "MiLoRA": "PiSSA", "RandomSVDLoRA": "PiSSA", "HiLoRA": "FCLoRA"}
# One of each kind of state on every run, the others where there is time.
QUICK = {"LoRA", "FCLoRA", "HiRA", "HiPLoRA", "AdaLoRA"}
# The same in three steps, in which AdaLoRA gets through its schedule.
SHORT = METHODS | {"AdaLoRA": Peft(config=PEFT["AdaLoRA"].config | {"tinit": 0, "tfinal": 1, "total_step": 3})}


@pytest.fixture
def learn(backbone_folder):
    """Fit four rows by heart, the head frozen; returns the loss before and after."""

    def run(method, autocast=False):
        torch.manual_seed(0)
        task = SequenceClassification(backbone_folder("bert"), method, num_labels=2)
        task.configure_model()
        for module in task.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        tokens = torch.randint(5, 60, (4, 8))
        batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": torch.tensor([0, 1, 1, 0])}
        adapted = [p for name, p in task.model.named_parameters() if p.requires_grad and "classifier" not in name]
        optimizer = torch.optim.AdamW(adapted, lr=1e-2)
        losses = []
        for _ in range(30):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                losses.append(task.loss(task(batch), batch["labels"]))
            optimizer.zero_grad()
            losses[-1].backward()
            optimizer.step()
        return float(losses[0].detach()), float(losses[-1].detach())

    return run


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_method_learns_by_what_it_adds(learn, method):
    before, after = learn(method)
    # Prompts hardly reach the first token's state through a random model's attention.
    weak = isinstance(method, Peft) and method.config["peft_type"] in {"PROMPT_TUNING", "P_TUNING"}
    assert after < (before if weak else 0.9 * before)


@pytest.mark.parametrize(("one", "other"), ALIKE.items())
def test_methods_that_are_taken_to_be_alike_are(backbone_folder, one, other):
    """So that crosses with what else there is need not have both."""
    found = []
    for name in (one, other):
        task = SequenceClassification(backbone_folder("bert"), METHODS[name], num_labels=2)
        task.configure_model()
        tensors = {n: (p.shape, p.dtype, p.requires_grad) for n, p in task.model.named_parameters()}
        tensors |= {n: (b.shape, b.dtype) for n, b in task.model.named_buffers()}
        sets = [
            (type(a), len(a.bounded), len(a.confined), len(a.orthonormal), a.retracted, a.ball_radius is None)
            for a in adapters(task.model)
        ]
        found.append((tensors, sets))
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["HiRA uniform", "RandomSVDLoRA", "FCLoRA"])
def test_what_is_drawn_depends_on_the_seed(backbone_folder, name):
    def drawn(seed):
        with torch.random.fork_rng([]):
            torch.manual_seed(0)  # which other starts are drawn by
            method = dataclasses.replace(METHODS[name], seed=seed)
            task = SequenceClassification(backbone_folder("bert"), method, num_labels=2)
            task.configure_model()
        tensors = [*adapters(task.model)[0].named_parameters(), *adapters(task.model)[0].named_buffers()]
        return {n: tensor for n, tensor in tensors if not n.startswith("base_layer.")}

    first, again, other = drawn(1), drawn(1), drawn(2)
    assert all(torch.equal(tensor, again[n]) for n, tensor in first.items())
    assert not all(torch.equal(tensor, other[n]) for n, tensor in first.items())


@pytest.mark.parametrize("dropout", [0.0, 0.1], ids=["one product", "two products"])
def test_hira_learns_in_bfloat16(learn, dropout):
    before, after = learn(HiRA(rank=4, dropout=dropout), autocast=True)
    assert after < 0.9 * before


@pytest.fixture(scope="module")
def kept():
    """Tasks and their checkpoints, by method."""
    return {}


@pytest.fixture
def three_steps(train, kept, tmp_path):
    """From a method's name to a task after three steps and its checkpoint, which are made once and not changed."""

    def made(name):
        if name not in kept:
            trainer = train(SHORT[name], max_steps=3)
            trainer.save_checkpoint(tmp_path / "task.ckpt")
            kept[name] = trainer.lightning_module.eval(), tmp_path / "task.ckpt"
        return kept[name]

    return made


@pytest.mark.parametrize("name", [name for name in SHORT if name not in {"FullFineTuning", "BitFit"}])
def test_the_frozen_backbone_keeps_its_bytes(three_steps, backbone_folder, name):
    before = transformers.AutoModel.from_pretrained(backbone_folder("bert"), add_pooling_layer=False)
    task, _ = three_steps(name)
    # A frozen parameter's path, whatever is wrapped round it.
    after = {name.replace(".base_layer", "").split("bert.")[-1]: p for name, p in task.model.named_parameters()}
    assert [name for name, tensor in before.named_parameters() if not torch.equal(tensor, after[name])] == []


@pytest.mark.parametrize("name", SHORT)
def test_a_checkpoint_rebuilds_the_trained_task(three_steps, name):
    task, path = three_steps(name)
    tokens = {"input_ids": torch.arange(12).reshape(2, 6), "attention_mask": torch.ones(2, 6, dtype=torch.long)}
    with torch.no_grad():
        assert torch.equal(load(path)(tokens), task(tokens))


@pytest.mark.parametrize(
    "method",
    [pytest.param(method, marks=[] if name in QUICK else pytest.mark.slow) for name, method in METHODS.items()],
    ids=METHODS,
)
def test_a_resumed_run_ends_where_the_uninterrupted_one_ends(train, tmp_path, method):
    class Save(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(tmp_path / "first.ckpt")

    whole = train(method, Save(), max_epochs=3)
    expected = {name: tensor.clone() for name, tensor in trained_state(whole.lightning_module.model).items()}
    resumed = train(method, max_epochs=3, ckpt_path=tmp_path / "first.ckpt")
    found = trained_state(resumed.lightning_module.model)
    assert [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)] == []


@pytest.mark.parametrize("method", SHORT.values(), ids=SHORT)
def test_a_step_with_a_gradient_that_is_not_finite_changes_nothing(train, method):
    snapshots = []

    class Poison(pl.Callback):
        def on_after_backward(self, trainer, pl_module):
            if trainer.global_step == 2:
                next(p for p in pl_module.parameters() if p.grad is not None).grad.fill_(float("nan"))

        def on_train_batch_end(self, trainer, pl_module, *args):
            snapshots.append([tensor.clone() for tensor in trained_state(pl_module.model).values()])

    train(method, Poison(), max_steps=3)
    assert all(torch.equal(before, after) for before, after in zip(snapshots[1], snapshots[2], strict=True))
    assert not all(torch.equal(before, after) for before, after in zip(snapshots[0], snapshots[1], strict=True))


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize(("kind", "backbone"), [(MaskedLM, "bert"), (CausalLM, "llama")], ids=["masked", "causal"])
def test_every_method_works_with_the_language_tasks_too(backbone_folder, kind, backbone, method):
    if isinstance(method, BitFit) and kind is CausalLM:
        pytest.skip("Llama has no biases")
    task = kind(backbone_folder(backbone), method)
    task.configure_model()
    batch = {"input_ids": torch.arange(5, 17).reshape(2, 6), "attention_mask": torch.ones(2, 6, dtype=torch.long)}
    task.log = lambda *args, **kwargs: None
    loss = task.training_step(batch | {"labels": batch["input_ids"]}, 0)
    loss.backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in task.model.parameters())


@pytest.mark.parametrize("method", [HiRA(rank=4), MoRA(rank=4), PEFT["DoRA"]], ids=["HiRA", "MoRA", "DoRA"])
@pytest.mark.slow
def test_a_change_without_factors_logs_an_estimate_close_to_the_dense_norm(train, method):
    from lit_spectral.adapters import named_changes

    trainer = train(method, lr=3e-3, max_epochs=6)
    changes = named_changes(trainer.lightning_module.model)
    exact = max(float(torch.linalg.svdvals(change.delta_weight())[0]) for change in changes.values())
    estimate = scalars(trainer)["spectral_norm_estimate/max"][-1][1]
    assert 0.9 * exact < estimate <= exact * (1 + 1e-4)


@pytest.mark.parametrize(("name", "precision"), crossed(["HiRA", "HiRALoRA", "MoRA"], ["64-true", "bf16-true"]))
def test_changes_without_factors_are_measured_in_every_precision(train, name, precision):
    assert scalars(train(METHODS[name], precision=precision, max_steps=2))["spectral_norm_estimate/max"][-1][1] > 0


def test_a_validation_is_told_the_largest_norm_of_its_own_step(train):
    class Told(pl.Callback):
        def on_validation_end(self, trainer, pl_module):
            self.sigma_max = trainer.callback_metrics.get("sigma_max")

    told = Told()
    # Fewer steps than norms are written after, so that what was shown is from the first.
    trainer = train(METHODS["LoRA"], told, max_epochs=1)
    assert float(told.sigma_max) == pytest.approx(scalars(trainer)["spectral_norm/max"][-1][1])


def test_adalora_allocates_although_a_step_was_skipped(train):
    class Poison(pl.Callback):
        def on_after_backward(self, trainer, pl_module):
            if trainer.global_step == 20:  # where the budget becomes final
                next(p for p in pl_module.parameters() if p.grad is not None).grad.fill_(float("nan"))

    fields = PEFT["AdaLoRA"].config | {"deltaT": 10}
    task = train(Peft(config=fields), Poison(), max_epochs=4).lightning_module
    kept = [int((p != 0).sum()) for name, p in task.model.named_parameters() if ".lora_E." in name]
    assert sum(kept) == 3 * len(kept)


def test_adalora_ends_at_its_budget(train):
    task = train(PEFT["AdaLoRA"], max_epochs=3).lightning_module
    kept = [int((p != 0).sum()) for name, p in task.model.named_parameters() if ".lora_E." in name]
    assert sum(kept) == 3 * len(kept)  # target_r a layer, on average


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Peft(config={"peft_type": "LORA", "rank": 4}), "rank"),
        (lambda: Peft(config={"peft_type": "LORA", "init_lora_weights": "pissa"}), "rewrites the backbone.*PiSSA"),
        (lambda: Peft(config={"peft_type": "PROMPT_TUNING"}), "unsupported operand .* give other fields"),
        (lambda: PiSSA(rank=4, alpha=0), "alpha must be finite and above 0"),
        (lambda: SORSA(rank=4, gamma=-1), "gamma must be at least 0"),
        (lambda: Peft(config={"r": 4}), "peft_type None unknown; peft has ADALORA"),
        (lambda: Peft(config={"peft_type": "ADALORA"}), "total_step"),
        (lambda: Peft(target_modules=["query"], config={"peft_type": "PROMPT_TUNING"}), "target_modules"),
        (lambda: HiRA(rank=4, reference="truncated"), "reference_rank"),
        (lambda: HiRA(rank=4, reference="truncated", reference_rank=99), "query: reference_rank 99 is above"),
        (lambda: HiRA(rank=4, reference="neighbours", target_modules=["pooler.dense"]), "numbered layers"),
        (lambda: FCLoRA(rank=4, start="zero", orthogonality="gram-schmidt"), "start: singular"),
        (lambda: HiPLoRA(rank=8), r"rank \+ principal_rank = 40 is above"),
        (lambda: MoRA(rank=32), "makes M .* above the .* matrix itself"),
    ],
)
def test_a_setting_that_can_not_work_is_one_line(backbone_folder, build, message):
    with pytest.raises(InputError, match=message):
        SequenceClassification(backbone_folder("bert"), build(), num_labels=2).configure_model()


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (HiRA(rank=4, reference="uniform"), HiRA(rank=4, reference="uniform", seed=1), "seed: 0, here 1"),
        (HiRA(rank=4, reference="uniform"), HiRA(rank=4), "reference: uniform, here weight"),
        (Peft(config={"peft_type": "LORA", "lora_alpha": 4}), Peft(config={"peft_type": "LORA"}), "config"),
    ],
)
def test_a_checkpoint_whose_change_is_made_otherwise_is_refused(
    train, backbone_folder, tmp_path, first, second, message
):
    train(first, max_steps=1).save_checkpoint(tmp_path / "task.ckpt")
    with pytest.raises(InputError, match=message):
        train(None, task=SequenceClassification(backbone_folder("bert"), second), ckpt_path=tmp_path / "task.ckpt")


@pytest.mark.parametrize("first", [LoRA(rank=4), PEFT["DoRA"]], ids=["ours", "peft's"])
def test_a_second_adapter_is_refused_and_the_first_can_be_taken_off(backbone_folder, first):
    model = transformers.AutoModel.from_pretrained(backbone_folder("bert"))
    names = [name for name, _ in model.named_parameters()]
    first.apply(model, model)
    with pytest.raises(InputError, match="adapter already"):
        LoRA(rank=4).apply(model, model)
    detach(model)
    assert [name for name, _ in model.named_parameters()] == names
