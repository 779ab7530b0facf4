"""Training through the shipped config on a tiny model: constraints, penalties, logs, checkpoints."""

import lightning.pytorch as pl
import pytest
import torch
from conftest import Watch, scalars
from lit_spectral.callbacks import SigmaClamp, SpectralBall, SpectralMonitor
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_spectral.adapters import adapters, named_changes, trained_state
from lit_spectral.checkpoint import load
from lit_spectral.errors import InputError
from lit_spectral.methods import FCLoRA, FullFineTuning, HiLoRA, HiPLoRA, LoRA, ProjLoRA
from lit_spectral.spectra import linalg
from lit_spectral.tasks import MaskedLM, SequenceClassification

BOUNDED = {
    "FCLoRA singular": FCLoRA(rank=4, sigma_bar=0.05, sigma_lr=100),
    "FCLoRA zero": FCLoRA(rank=4, sigma_bar=0.05, start="zero"),
    "HiLoRA": HiLoRA(rank=4, sigma_bar="q1"),
}


@pytest.mark.parametrize("method", BOUNDED.values(), ids=BOUNDED)
@pytest.mark.parametrize(
    "options", [{}, {"accumulate_grad_batches": 3}, {"precision": "bf16-mixed"}], ids=["plain", "accumulated", "bf16"]
)
def test_sigma_is_feasible_after_every_step(train, method, options):
    reached = []

    def look(task):
        for adapter in adapters(task.model):
            assert adapter.sigma.min() >= 0
            assert adapter.sigma.max() <= adapter.sigma_bar
            reached.append(float(adapter.sigma.detach().max() / adapter.sigma_bar))

    train(method, Watch(look), **options)
    assert max(reached) == pytest.approx(1)  # the bound was felt, so the test could have failed


def test_projections_leave_the_optimizer_alone_after_training(train):
    trainer = train(FCLoRA(rank=4))
    assert not trainer.optimizers[0]._optimizer_step_post_hooks


def test_a_step_with_a_gradient_that_is_not_finite_changes_nothing(train):
    snapshots = []

    class Poison(pl.Callback):
        def on_after_backward(self, trainer, pl_module):
            if trainer.global_step == 3:
                next(p for p in pl_module.parameters() if p.grad is not None).grad.fill_(float("nan"))

        def on_train_batch_end(self, trainer, pl_module, *args):
            state = [t.clone() for t in trained_state(pl_module.model).values()]
            moments = [v.clone() for s in trainer.optimizers[0].state.values() for v in s.values()]
            snapshots.append(state + moments)

    trainer = train(FCLoRA(rank=4), Poison(), max_steps=5)
    before, after, later = snapshots[2:5]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(after, later, strict=True))
    assert trainer.lightning_module.skipped_steps == 1
    assert scalars(trainer)["train/skipped_steps"][-1][1] == 1


def test_the_logged_norm_is_that_of_the_dense_change_at_every_step(train):
    expected = {}

    class Dense(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            for name, module in pl_module.model.named_modules():
                if hasattr(module, "delta_weight"):
                    norm = torch.linalg.svdvals(module.delta_weight().double())[0]
                    expected.setdefault(f"spectral_norm/{name}", []).append((trainer.global_step - 1, float(norm)))

    trainer = train(FCLoRA(rank=4, sigma_lr=100), Dense(), SpectralMonitor(flush_every_n_steps=5))
    logged = scalars(trainer)
    assert len(expected) == 12
    for name, points in expected.items():
        assert [step for step, _ in logged[name]] == [step for step, _ in points] == list(range(16))
        assert [v for _, v in logged[name]] == pytest.approx([v for _, v in points], rel=1e-5)
    largest = [max(points[i][1] for points in expected.values()) for i in range(16)]
    assert [v for _, v in logged["spectral_norm/max"]] == pytest.approx(largest, rel=1e-5)


@pytest.mark.parametrize("method", [
    HiPLoRA(rank=4, principal_rank=3, delta_lr=5), HiPLoRA(rank=4, principal_rank=3, project=False),
    FCLoRA(rank=4, principal_rank=3, start="zero", sigma_lr=1), ProjLoRA(rank=4, principal_rank=3),
], ids=["HiPLoRA", "HiPLoRA without projection", "FCLoRA", "ProjLoRA"])  # fmt: skip
def test_the_logged_principal_share_is_that_of_the_dense_change_and_weight(method, train):
    trainer = train(method, max_steps=3)
    logged = scalars(trainer)
    expected = []
    for name, adapter in named_changes(trainer.lightning_module.model).items():
        change, (u, _, vt) = adapter.delta_weight().double(), torch.linalg.svd(adapter.weight.double())
        expected.append(float((u[:, :3].mT @ change @ vt[:3].mT).square().sum() / change.square().sum()))
        assert logged[f"principal_share/{name}"][-1] == (2, pytest.approx(expected[-1], rel=1e-4, abs=1e-9))
    assert logged["principal_share/max"][-1][1] == pytest.approx(max(expected), rel=1e-4, abs=1e-9)
    assert (max(expected) > 1e-3) == isinstance(method, HiPLoRA)


def test_a_method_that_knows_no_principal_directions_logs_no_share(train):
    assert not [tag for tag in scalars(train(LoRA(rank=4), max_steps=1)) if tag.startswith("principal_share")]


def test_the_norm_is_logged_once_an_optimizer_step_under_accumulation(train):
    logged = scalars(train(LoRA(rank=4), accumulate_grad_batches=3))
    assert [step for step, _ in logged["spectral_norm/max"]] == list(range(6))


def test_full_fine_tuning_logs_an_estimate_close_to_the_dense_norm(train):
    trainer = train(FullFineTuning(), lr=1e-3)
    logged = scalars(trainer)
    task = trainer.lightning_module
    exact = max(float(torch.linalg.svdvals(a.delta_weight())[0]) for a in adapters(task.model))
    estimate = logged["spectral_norm_estimate/max"][-1][1]
    assert 0.8 * exact < estimate <= exact * (1 + 1e-5)
    assert not [tag for tag in logged if tag.startswith("spectral_norm/")]


def test_histograms_and_the_panel_of_all_layers_are_in_the_event_file(train):
    trainer = train(FCLoRA(rank=4))
    events = EventAccumulator(trainer.log_dir).Reload()
    assert len([t for t in events.Tags()["histograms"] if t.startswith("singular_values/")]) == 12
    assert b"spectral_norm/.*" in events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]


@pytest.mark.parametrize("penalty", ["decoupled", "gradient"])
def test_the_penalty_is_no_part_of_the_reported_loss(train, penalty):
    logged = [
        scalars(train(FCLoRA(rank=4, start="zero", gamma=gamma, orthogonality=penalty), max_steps=1))
        for gamma in (0.0, 5.0)
    ]
    assert logged[0]["train/loss"][0] == logged[1]["train/loss"][0]
    assert "train/orthogonality_penalty" not in logged[0]
    assert logged[1]["train/orthogonality_penalty"][0][1] > 100


@pytest.mark.parametrize("penalty", ["decoupled", "gradient"])
def test_the_penalty_keeps_the_vectors_orthonormal(train, penalty):
    errors = []
    for gamma in (0.0, 0.5):
        trainer = train(FCLoRA(rank=4, sigma_lr=100, gamma=gamma, orthogonality=penalty), lr=1e-3)
        errors.append(scalars(trainer)["orthogonality_error/max"][-1][1])
    assert errors[1] < {"decoupled": 0.5, "gradient": 0.9}[penalty] * errors[0]


def test_a_callback_of_the_user_replaces_the_default_of_its_kind(train):
    mine = SpectralMonitor(every_n_steps=4)
    trainer = train(FCLoRA(rank=4), mine)
    assert [c for c in trainer.callbacks if isinstance(c, SpectralMonitor)] == [mine]
    assert sum(isinstance(c, SigmaClamp) for c in trainer.callbacks) == 1
    assert sum(isinstance(c, SpectralBall) for c in trainer.callbacks) == 1
    assert [step for step, _ in scalars(trainer)["spectral_norm/max"]] == [3, 7, 11, 15]


def test_sigma_and_the_vectors_learn_at_their_own_rates(train):
    trainer = train(FCLoRA(rank=4, sigma_lr=30, factor_lr=3, head_lr=1), lr=1e-3, max_steps=1)
    rates = {id(p): group["initial_lr"] for group in trainer.optimizers[0].param_groups for p in group["params"]}
    adapter = adapters(trainer.lightning_module.model)[0]
    found = [rates[id(parameter)] for parameter in (adapter.u, adapter.v, adapter.sigma)]
    assert found == pytest.approx([3e-3, 3e-3, 3e-2])


def test_the_heads_output_layer_learns_at_its_own_rate(train):
    trainer = train(LoRA(rank=4, head_lr=20), lr=1e-3, max_steps=1)
    model = trainer.lightning_module.model
    fast = [p for group in trainer.optimizers[0].param_groups if group["lr_ratio"] == 20 for p in group["params"]]
    assert {id(p) for p in fast} == {id(p) for p in model.classifier.parameters()}


@pytest.mark.parametrize("method", [LoRA, FCLoRA, FullFineTuning])
def test_a_rate_of_the_head_that_is_not_above_0_is_refused(method):
    with pytest.raises(InputError, match="head_lr must be finite and above 0, not 0"):
        method(head_lr=0)


def test_the_encoder_is_frozen_and_the_head_is_trained(train):
    task = train(LoRA(rank=4), max_steps=1).lightning_module
    trained = {name for name, p in task.model.named_parameters() if p.requires_grad}
    assert {"classifier.weight", "classifier.bias"} <= trained
    assert all(".left" in name or ".right" in name for name in trained if name.startswith("bert.encoder"))


@pytest.mark.parametrize(("method", "trained"), [(LoRA(rank=4), 0), (FullFineTuning(), 5)])
def test_the_masked_language_head_is_trained_only_with_everything(backbone_folder, method, trained):
    task = MaskedLM(backbone_folder("bert"), method)
    task.configure_model()
    assert sum(p.requires_grad for name, p in task.model.named_parameters() if name.startswith("cls.")) == trained


def test_a_checkpoint_holds_what_is_trained_and_rebuilds_the_task(train, tmp_path, mrpc_folder):
    trainer = train(FCLoRA(rank=4))
    path = tmp_path / "task.ckpt"
    trainer.save_checkpoint(path)
    task = trainer.lightning_module.eval()
    saved = torch.load(path, weights_only=True)["state_dict"]
    assert not [name for name in saved if "base_layer" in name or "embeddings" in name]
    tokens = {"input_ids": torch.arange(12).reshape(2, 6), "attention_mask": torch.ones(2, 6, dtype=torch.long)}
    with torch.no_grad():
        assert torch.equal(load(path)(tokens), task(tokens))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": LoRA(rank=4)}, "of method FCLoRA.*--model.method FCLoRA"),
        ({"method": FCLoRA(rank=5)}, r"rank: 4, here 5.*of another shape.*\.u"),
        ({"method": FCLoRA(rank=4, target_modules=["query"])}, "unexpected.*layer.0.attention.self.key"),
        ({"backbone": "roberta"}, "trained on backbone"),
        ({"method": FCLoRA(rank=4, gamma=0.5)}, None),
    ],
)
def test_a_checkpoint_that_does_not_fit_says_why(train, backbone_folder, tmp_path, change, message):
    path = tmp_path / "task.ckpt"
    train(FCLoRA(rank=4), max_steps=1).save_checkpoint(path)
    task = SequenceClassification(backbone_folder(change.get("backbone", "bert")), change.get("method", FCLoRA(rank=4)))
    if message is None:
        train(None, task=task, ckpt_path=path)  # what only steers training may change
    else:
        with pytest.raises(InputError, match=message):
            train(None, task=task, ckpt_path=path)


def test_a_checkpoint_of_another_scale_is_refused(train, backbone_folder, tmp_path):
    path = tmp_path / "task.ckpt"
    train(LoRA(rank=4, alpha=8), max_steps=1).save_checkpoint(path)
    with pytest.raises(InputError, match=r"made otherwise \(alpha: 8, here None"):
        train(None, task=SequenceClassification(backbone_folder("bert"), LoRA(rank=4)), ckpt_path=path)


def test_orthogonality_error_is_logged_as_the_largest_of_all(train):
    task = None

    class Keep(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            nonlocal task
            task = [t.detach().clone() for a in adapters(pl_module.model) for t in a.orthonormal]

    trainer = train(FCLoRA(rank=4, start="zero"), Keep())
    expected = max(float(linalg.orthogonality_error(t[None])) for t in task)
    assert scalars(trainer)["orthogonality_error/max"][-1][1] == pytest.approx(expected, rel=1e-5)
