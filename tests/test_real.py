"""A real backbone on real data, for a few dozen steps; only where both are at hand."""

import os

import pytest
import torch
from conftest import CONFIGS
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModel

from lit_spectral import cli
from lit_spectral.adapters import adapters
from lit_spectral.checkpoint import load
from lit_spectral.methods import MiLoRA, PiSSA

pytestmark = [pytest.mark.real, pytest.mark.timeout(2400)]  # some CPUs have no bfloat16
STEPS = 40
# Without these instructions products in bfloat16 take ten times as long as in float32.
PRECISION = "bf16-mixed" if torch.cpu._is_avx512_bf16_supported() else "32-true"


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Forty steps of the main config."""
    folder = tmp_path_factory.mktemp("real")
    torch.set_num_threads(os.cpu_count() or 1)
    return cli.run(
        [
            "fit",
            f"--config={CONFIGS / 'fclora_roberta_mrpc.yaml'}",
            f"--model.backbone={os.environ['LIT_SPECTRAL_BACKBONE']}",
            f"--data.path={os.environ['LIT_SPECTRAL_MRPC']}",
            f"--trainer.precision={PRECISION}",
            "--trainer.max_epochs=1",
            f"--trainer.limit_train_batches={STEPS}",
            "--trainer.enable_progress_bar=false",
            f"--trainer.logger.init_args.save_dir={folder}",
        ]
    )


def test_every_layer_has_one_norm_a_step_in_the_event_file(done):
    events = EventAccumulator(done.trainer.log_dir, size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("spectral_norm/bert.")]
    assert len(tags) == len(adapters(done.model.model)) == 36
    assert all([p.step for p in events.Scalars(tag)] == list(range(STEPS)) for tag in tags)


def test_constraints_hold_and_the_bound_is_that_of_the_change(done):
    for adapter in adapters(done.model.model):
        assert adapter.sigma.min() >= 0
        assert adapter.sigma.max() <= adapter.sigma_bar
        assert torch.linalg.svdvals(adapter.delta_weight())[0] <= 1.05 * adapter.sigma_bar


def test_the_change_grows(done):
    events = EventAccumulator(done.trainer.log_dir, size_guidance={"scalars": 0}).Reload()
    norms = [p.value for p in events.Scalars("spectral_norm/mean")]
    assert norms[-1] > 5 * norms[0] > 0


def test_the_checkpoint_is_small_and_loads(done):
    path = os.path.join(done.trainer.log_dir, "checkpoints", "last.ckpt")
    assert os.path.getsize(path) < 8e6
    task = load(path)
    for mine, theirs in zip(adapters(task.model), adapters(done.model.model), strict=True):
        assert torch.equal(mine.delta_weight(), theirs.delta_weight())


@pytest.mark.parametrize(("method", "last"), [(PiSSA, False), (MiLoRA, True)], ids=["PiSSA", "MiLoRA"])
def test_components_of_real_weights_are_those_of_a_float64_svd(method, last):
    """Of the first layer's maps, whose three shapes they have, by the angle of the subspaces."""
    model = AutoModel.from_pretrained(os.environ["LIT_SPECTRAL_BACKBONE"])
    method(rank=16, target_modules=r".*layer\.0\..*dense|.*layer\.0\..*query").apply(model, model)
    attached = adapters(model)
    assert len({tuple(adapter.weight.shape) for adapter in attached}) == 3
    for adapter in attached:
        u, _, vh = torch.linalg.svd(adapter.weight.detach().double(), full_matrices=False)
        wanted = slice(-16, None) if last else slice(16)
        for found, exact in ((adapter.left_start, u[:, wanted]), (adapter.right_start.T, vh[wanted].T)):
            mine = torch.linalg.qr(found.double())[0]
            assert torch.linalg.matrix_norm(exact - mine @ (mine.T @ exact), 2) <= 1e-4
