"""Bottleneck adapters beside their equations, where they are put, and what says that they have no ΔW."""

import copy

import lightning.pytorch as pl
import pytest
import torch
from conftest import WORDS
from lit_spectral.callbacks import SpectralMonitor
from lit_spectral.datamodules import GLUE
from torch import nn
from zoo.models import make

from lit_spectral import adapters as ad
from lit_spectral import cli, methods
from lit_spectral.errors import InputError
from lit_spectral.reading import Reading
from lit_spectral.retention.base_model import base_model
from lit_spectral.tasks import SequenceClassification
from lit_spectral.updates.of_model import of_model

FUNCTIONS = {"relu": torch.relu, "gelu": nn.functional.gelu, "silu": nn.functional.silu, "tanh": torch.tanh}
TOKENS = torch.tensor([[2, 9, 30, 17, 44, 8, 3], [2, 5, 6, 7, 40, 41, 3]])


@pytest.mark.parametrize("activation", FUNCTIONS)
@pytest.mark.parametrize("parallel", [False, True], ids=["behind", "beside"])
def test_it_computes_its_equation(activation, parallel):
    torch.manual_seed(0)
    adapter = ad.BottleneckAdapter(nn.Linear(6, 5), 3, activation, parallel)
    for parameter in adapter.parameters():
        nn.init.normal_(parameter)
    adapter, x = adapter.double(), torch.randn(4, 6, dtype=torch.float64)
    h = x @ adapter.weight.mT + adapter.bias
    narrow = FUNCTIONS[activation]((x if parallel else h) @ adapter.down.mT + adapter.down_bias)
    torch.testing.assert_close(adapter(x), h + narrow @ adapter.up.mT + adapter.up_bias)


# Of the first block: what closes attention, and what closes its feed-forward part.
ENDS = {
    "BERT": (["encoder.layer.0.attention.output.dense"], ["encoder.layer.0.output.dense"]),
    "MPNet": (["encoder.layer.0.attention.attn.o"], ["encoder.layer.0.output.dense"]),
    "ModernBERT": (["layers.0.attn.Wo"], ["layers.0.mlp.Wo"]),
    "GPT-2": (["h.0.attn.c_proj"], ["h.0.mlp.c_proj"]),
    "OPT": (["decoder.layers.0.self_attn.out_proj"], ["decoder.layers.0.fc2"]),
    "Llama": (["layers.0.self_attn.o_proj"], ["layers.0.mlp.down_proj"]),
    "Mixtral": (["layers.0.self_attn.o_proj"], []),
    "Mamba": ([], ["layers.0.mixer.out_proj"]),
}


@pytest.mark.parametrize("name", ENDS)
def test_a_blocks_parts_are_closed_by_the_maps_that_write_to_the_residual_stream(name):
    encoder = make(
        name, "CausalLM" if name not in {"BERT", "MPNet", "ModernBERT"} else "SequenceClassification"
    ).base_model
    found = ad.find_block_ends(encoder, Reading(encoder))
    first = tuple([path for path in paths if ".0." in path] for paths in found)
    assert first == ENDS[name]


@pytest.mark.parametrize(
    ("method", "count"),
    [(methods.Houlsby(), 4), (methods.Pfeiffer(), 2), (methods.Series(), 12), (methods.Parallel(), 12)],
)
def test_the_model_starts_as_its_backbone_to_the_bit_and_is_it_again_afterwards(method, count):
    model = make("BERT", "SequenceClassification").eval()
    before, names = model(TOKENS).logits, [name for name, _ in model.named_parameters()]
    method.apply(model, model.base_model)
    assert len(ad.named_wrappers(model)) == count
    assert torch.equal(model(TOKENS).logits, before)
    ad.detach(model)
    assert [name for name, _ in model.named_parameters()] == names


@pytest.fixture(scope="module")
def adapted():
    model = make("BERT", "SequenceClassification").eval()
    methods.Houlsby(width=4).apply(model, model.base_model)
    return model


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (ad.fold, "fold: .*attention.output.dense adds what is not linear"),
        (of_model, "attention.output.dense has a bottleneck adapter, which is not linear: there is no ΔW"),
        (lambda model: methods.LoRA().apply(model, model.base_model), "attention.output.dense has an adapter already"),
    ],
    ids=["fold", "an update", "a second adapter"],
)
def test_what_needs_a_change_says_that_there_is_none(adapted, act, message):
    with pytest.raises(InputError, match=message):
        act(adapted)
    assert len(ad.named_wrappers(adapted)) == 4


def test_where_no_map_closes_a_part_places_are_asked_for():
    model = make("Mixtral", "CausalLM")
    with pytest.raises(InputError, match=r"no linear map here ends a block's part; name maps in .*target_modules"):
        methods.Pfeiffer().apply(model, model.base_model)


@pytest.fixture(scope="module")
def trained(backbone_folder, mrpc_folder, tmp_path_factory):
    """A trainer, its task after three steps, and the checkpoint."""
    folder = tmp_path_factory.mktemp("bottlenecks")
    torch.manual_seed(0)
    task = SequenceClassification(backbone_folder("bert"), methods.Houlsby(width=4), num_labels=2)
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=3, logger=pl.loggers.CSVLogger(folder), callbacks=[SpectralMonitor()],
        enable_checkpointing=False, enable_progress_bar=False, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(task, GLUE("mrpc", mrpc_folder, batch_size=8))
    trainer.save_checkpoint(folder / "task.ckpt")
    return trainer, task, folder / "task.ckpt"


def test_the_monitor_records_nothing_and_says_so(trained, caplog):
    trainer, task, _ = trained
    assert not [name for name in trainer.logged_metrics if "norm" in name or "sigma" in name]
    caplog.set_level("INFO")
    SpectralMonitor().on_train_start(trainer, task)
    assert "no map has a ΔW here, and nothing is recorded" in caplog.text


@torch.no_grad()
def test_the_base_model_is_the_backbone_without_them(trained):
    _, task, _ = trained
    batch = {"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS)}
    task.eval()
    with base_model(task, {}):
        base = task(batch)
    assert not torch.equal(task(batch), base)
    plain = copy.deepcopy(task.model)
    ad.detach(plain)
    assert torch.equal(plain(**batch).logits, base)


@pytest.mark.parametrize(
    "words",
    [["export"], ["export", "--to", "merged"], ["spectra"], ["analyze"], ["mend", "--scale", "0.5"]],
    ids=" ".join,
)
def test_verbs_that_need_a_change_refuse_the_checkpoint_in_one_line(trained, tmp_path, words, capsys):
    verb, *flags = words
    output = ["--output", str(tmp_path / "out")] if verb in {"export", "mend"} else []
    with pytest.raises((InputError, SystemExit)) as refused:
        cli.main([verb, str(trained[2]), *flags, *output])
    assert "there is no ΔW to analyse, scale, merge or export" in str(refused.value) + capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_retention_is_measured_with_and_without_them(trained, tmp_path, capsys):
    text = tmp_path / "words.txt"
    text.write_text("\n".join(" ".join(WORDS[i : i + 6]) for i in range(8)))
    cli.main(["retain", "--checkpoint", str(trained[2]), "--corpora", f"words={text}", "--max_length", "16"])
    assert "words" in capsys.readouterr().out
