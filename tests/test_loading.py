"""Backbones in any precision, with what is trained in float32; and how else they are loaded."""

import json
import shutil

import lightning.pytorch as pl
import pytest
import torch
from conftest import Watch, scalars
from crossing import crossed
from lit_spectral.callbacks import RetentionMonitor
from lit_spectral.datamodules import GLUE, PromptedText
from test_methods import ALIKE, METHODS
from test_odd_weights import METHODS as BOUNDED
from test_odd_weights import outside

from lit_spectral.adapters import Adapter, adapters, trained_state
from lit_spectral.checkpoint import load
from lit_spectral.errors import InputError
from lit_spectral.methods import FCLoRA, HiPLoRA, HiRA, LoRA, Peft
from lit_spectral.tasks import CausalLM, SequenceClassification

# What the trainer computes in, and what the weights lie in.
PRECISIONS = {
    "bf16-true": ("bf16-true", "float32"),
    "16-true": ("16-true", "float32"),
    "bfloat16 weights": ("32-true", "bfloat16"),
    "bf16-mixed on bfloat16 weights": ("bf16-mixed", "bfloat16"),
}
ADALORA = Peft(config={"peft_type": "ADALORA", "init_r": 6, "target_r": 3, "tinit": 1, "tfinal": 2})
EVERY = {name: method for name, method in (METHODS | BOUNDED | {"AdaLoRA": ADALORA}).items() if name != "FourierFT"}
QUICK = {"LoRA", "FCLoRA by Gram-Schmidt in a ball", "HiRA", "HiPLoRA in a ball"}
# Those with adapters of another's in one precision each, where there is time.
TABLE = [
    *crossed([name for name in EVERY if name in QUICK], PRECISIONS),
    *(
        pytest.param(*pair.values, marks=pytest.mark.slow)
        for pair in crossed(
            [name for name in EVERY if name not in QUICK], PRECISIONS, also=EVERY.keys() - ALIKE.keys() - QUICK
        )
        if not pair.marks
    ),
]


@pytest.mark.parametrize(("name", "precision"), TABLE)
def test_every_method_trains_in_float32_beside_a_backbone_in_any_precision(backbone_folder, train, name, precision):
    method, (computed, kept) = EVERY[name], PRECISIONS[precision]
    task = SequenceClassification(backbone_folder("bert"), method, dtype=kept)
    found = []

    def look(task):
        found.extend(pair for adapter in adapters(task.model) for pair in outside(adapter))

    trainer = train(method, Watch(look), task=task, precision=computed, max_epochs=1)
    assert [(what, amount) for what, amount in found if not amount <= 0] == []
    assert all(torch.isfinite(torch.tensor([value for _, value in scalars(trainer)["train/loss"]])))
    half = torch.float16 if computed == "16-true" else torch.bfloat16
    assert all(a.weight.dtype == half for a in adapters(task.model) if kept == "bfloat16" or computed.endswith("true"))
    own = [
        p for module in task.model.modules() if isinstance(module, Adapter) for p in module.parameters(recurse=False)
    ]
    assert {p.dtype for p in own} <= {torch.float32}
    states = trainer.optimizers[0].state
    assert {states[p][name].dtype for p in own if p in states for name in states[p]} <= {torch.float32}


def test_a_method_that_can_not_do_with_a_precision_is_refused(train):
    with pytest.raises(InputError, match=r"^backbone: under this method it can't be run in that precision \("):
        train(METHODS["FourierFT"], precision="bf16-true")


@pytest.mark.parametrize(
    ("method", "precision"),
    crossed(
        [LoRA(rank=4), FCLoRA(rank=4), HiRA(rank=4), HiPLoRA(rank=4, principal_rank=4)], ["bf16-true", "bf16-mixed"]
    ),
)
def test_a_checkpoint_on_bfloat16_weights_is_loaded_on_such(backbone_folder, train, tmp_path, method, precision):
    task = SequenceClassification(backbone_folder("bert"), method, dtype="bfloat16")
    train(method, task=task, precision=precision).save_checkpoint(tmp_path / "last.ckpt")
    loaded = load(tmp_path / "last.ckpt")
    assert loaded.loading.dtype == "bfloat16"
    assert all(torch.equal(t, trained_state(task.model)[name]) for name, t in trained_state(loaded.model).items())
    batch = {"input_ids": torch.arange(4, 12)[None], "attention_mask": torch.ones(1, 8, dtype=torch.int64)}
    with torch.no_grad():
        assert torch.equal(loaded(batch), task.eval()(batch))


def test_the_start_is_that_of_float32_whatever_the_trainers_precision(backbone_folder, train):
    """Singular vectors that bfloat16 had rounded would not be orthonormal to 1e-3."""
    method = FCLoRA(rank=4, orthogonality="gram-schmidt")
    tasks = [SequenceClassification(backbone_folder("bert"), method) for _ in range(2)]
    starts = []

    class Start(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            starts.append({name: tensor.clone() for name, tensor in trained_state(pl_module.model).items()})

    for task, precision in zip(tasks, ("32-true", "bf16-true"), strict=True):
        train(method, Start(), task=task, precision=precision, max_steps=1)
    assert [n for n, t in starts[0].items() if "encoder" in n and not torch.equal(starts[1][n], t)] == []


@pytest.mark.parametrize("method", [LoRA(rank=4), FCLoRA(rank=4), HiRA(rank=4)], ids=lambda m: type(m).__name__)
def test_gradient_checkpointing_keeps_gradients_and_forgets_what_layers_made(decoder_folder, method):
    kept, gradients = [], []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        task = CausalLM(decoder_folder(), method, gradient_checkpointing=checkpointing)
        task.configure_model()
        for adapter in adapters(task.model):
            torch.nn.init.constant_(adapter.left if hasattr(adapter, "left") else adapter.sigma, 0.1)
        tokens = torch.arange(4, 44)[None]
        total = 0

        def note(tensor):
            nonlocal total
            total += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = task.model(input_ids=tokens, labels=tokens).loss
        kept.append(total)
        loss.backward()
        gradients.append({name: p.grad for name, p in task.model.named_parameters() if p.requires_grad})
    assert kept[1] < 0.5 * kept[0]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_a_decoder_learns_under_gradient_checkpointing(decoder_folder, train, tmp_path):
    rows = [{"question": "the cat sat on", "answer": "the mat"}] * 40
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    losses = []
    for checkpointing in (False, True):
        pl.seed_everything(0)
        task = CausalLM(decoder_folder(), FCLoRA(rank=4), gradient_checkpointing=checkpointing)
        data = PromptedText(str(tmp_path), "{question}", "{answer}", batch_size=8)
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        trainer = pl.Trainer(max_epochs=1, accelerator="cpu", logger=False, default_root_dir=tmp_path, **quiet)
        trainer.fit(task, data)
        losses.append(float(trainer.callback_metrics["val/loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "float64"}, "dtype: there is no 'float64'; "),
        ({"attn_implementation": "flash"}, "backbone: .*flash"),
    ],
)
def test_what_can_not_be_loaded_so_is_refused(backbone_folder, settings, message):
    with pytest.raises(InputError, match=message):
        SequenceClassification(backbone_folder("bert"), LoRA(rank=4), num_labels=2, **settings).configure_model()


def test_attention_is_of_the_kind_that_is_given(backbone_folder):
    task = SequenceClassification(backbone_folder("bert"), LoRA(rank=4), num_labels=2, attn_implementation="eager")
    task.configure_model()
    assert task.model.config._attn_implementation == "eager"


def test_code_beside_a_model_runs_where_it_is_trusted_alone(backbone_folder, tmp_path, mrpc_folder):
    folder = shutil.copytree(backbone_folder("bert"), tmp_path / "coded")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.Own", "AutoModelForSequenceClassification": "own.Net"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
        "from transformers import BertConfig, BertForSequenceClassification\n"
        "class Own(BertConfig):\n    model_type = 'own'\n"
        "class Net(BertForSequenceClassification):\n    config_class = Own\n"
    )

    def fit(**settings):
        task = SequenceClassification(str(folder), LoRA(rank=2, target_modules=["query"]), **settings)
        trainer = pl.Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                             enable_progress_bar=False, default_root_dir=tmp_path)  # fmt: skip
        trainer.fit(task, GLUE("mrpc", mrpc_folder, tokenizer=backbone_folder("bert")))

    with pytest.raises(InputError, match=r"brings code of its own, which is not run; .*trust_remote_code=true"):
        fit()
    assert not (tmp_path / "ran").exists()
    fit(trust_remote_code=True)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(("precision", "dtype"), [("bf16-true", "float32"), ("32-true", "bfloat16")])
def test_what_is_kept_is_measured_in_the_backbones_precision(backbone_folder, train, tmp_path, precision, dtype):
    (tmp_path / "text.txt").write_text("the cat sat on the mat and then the dog ran\n" * 4)
    task = SequenceClassification(backbone_folder("bert"), LoRA(rank=2), dtype=dtype)
    monitor = RetentionMonitor({"words": str(tmp_path / "text.txt")}, max_length=16)
    train(None, monitor, task=task, precision=precision, max_epochs=1)
    assert 0 < monitor.latest["words/base_accuracy"] < 1
