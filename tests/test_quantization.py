"""Backbones in codes of 4 and 8 bits: what they compute, what is trained beside them, what is refused."""

import copy
import json
import logging
import shutil

import lightning.pytorch as pl
import pytest
import torch
import transformers
from conftest import CONFIGS, SHAPE, Watch
from crossing import crossed
from harness_tasks import data, quick  # noqa: F401 (fixtures)
from lit_spectral.datamodules import PromptedText
from test_loading import ADALORA
from test_methods import ALIKE, METHODS
from test_odd_weights import METHODS as BOUNDED
from test_odd_weights import outside

from lit_spectral.adapters import adapters, fold, named_changes, trained_state
from lit_spectral.adapters.linear import is_quantised, weight_matrix
from lit_spectral.checkpoint import load
from lit_spectral.errors import InputError
from lit_spectral.evaluation import command as evaluation
from lit_spectral.lightning_cli import SpectralCLI
from lit_spectral.methods import FCLoRA, FullFineTuning, HiPLoRA, HiRA, LoRA, MiLoRA, Peft
from lit_spectral.retention import command as retention
from lit_spectral.tasks import CausalLM, SequenceClassification, Task

KINDS = ["nf4", "int8"]
QUICK = {"LoRA", "FCLoRA by Gram-Schmidt", "HiRA", "HiPLoRA in a ball", "BitFit"}
TRAINED = METHODS | BOUNDED | {"AdaLoRA": Peft(config=ADALORA.config | {"total_step": 8})}
del TRAINED["FullFineTuning"]  # which is refused


def coded(model):
    return {name: module for name, module in model.named_modules() if is_quantised(module)}


def codes(model):
    return {name: module.weight.detach().clone() for name, module in coded(model).items()}


def built(folder, method=None, kind="nf4", task=SequenceClassification, **settings):
    settings |= {"num_labels": 2} if task is SequenceClassification else {}
    found = task(folder, method or LoRA(rank=4), quantization=kind, **settings)
    found.configure_model()
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ["bert", "roberta", "deberta", "mpnet", "distilbert"])
def test_all_maps_of_an_encoder_are_codes_and_what_is_trained_whole_is_not(backbone_folder, architecture, kind):
    task = built(backbone_folder(architecture), kind=kind)
    plain = SequenceClassification(backbone_folder(architecture), LoRA(rank=4), num_labels=2)
    plain.configure_model()
    assert [n for n, p in task.model.named_parameters() if p.requires_grad] == [
        n for n, p in plain.model.named_parameters() if p.requires_grad
    ]
    assert all(p.dtype == torch.float32 for p in task.model.parameters() if p.requires_grad)
    assert all(is_quantised(adapter.base_layer) for adapter in adapters(task.model))
    linear = {n for n, m in task.encoder.named_modules() if isinstance(m, torch.nn.Linear) and "pooler" not in n}
    assert coded(task.encoder).keys() == linear


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_decoders_output_layer_stays_in_floats(decoder_folder, architecture, kind):
    task = built(decoder_folder(architecture), kind=kind, task=CausalLM)
    assert not is_quantised(task.model.get_output_embeddings())
    assert all(is_quantised(adapter.base_layer) for adapter in adapters(task.model))


@pytest.mark.parametrize(("kind", "error"), [("nf4", 0.15), ("int8", 0.01)])
def test_values_are_near_those_of_the_files(tmp_path, kind, error):
    # With AVX512 bitsandbytes 0.50.2 is coarser on rows that are shorter than its blocks of 64.
    config = transformers.BertConfig(**SHAPE | {"hidden_size": 64, "intermediate_size": 128})
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path)
    plain, task = (built(str(tmp_path), kind=each) for each in (None, kind))
    for mine, theirs in zip(adapters(task.model), adapters(plain.model), strict=True):
        wanted = weight_matrix(theirs.base_layer)
        assert 0 < torch.linalg.matrix_norm(weight_matrix(mine.base_layer) - wanted) < error * wanted.norm()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("autocast", [False, True])
def test_a_map_and_its_gradients_are_those_of_a_plain_one_with_its_values(backbone_folder, kind, autocast):
    layer = next(iter(coded(built(backbone_folder("bert"), kind=kind).model).values()))
    plain = torch.nn.Linear(layer.in_features, layer.out_features)
    with torch.no_grad():
        plain.weight.copy_(weight_matrix(layer))
        plain.bias.copy_(layer.bias)
    layer.bias.requires_grad_(True)
    x = torch.randn(3, 5, layer.in_features)
    found = []
    for each in (plain, layer):
        inputs = x.clone().requires_grad_(True)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = each(inputs)
        out.float().square().sum().backward()
        with torch.no_grad():
            alone = each.eval()(x[1, 2])
        found.append((out, inputs.grad, each.bias.grad, alone))
    for theirs, mine in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0.02 if autocast else 1e-5, atol=0.05 if autocast else 1e-5)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *crossed([name for name in TRAINED if name in QUICK], KINDS),
        *(
            pytest.param(*pair.values, marks=pytest.mark.slow)
            for pair in crossed(
                [n for n in TRAINED if n not in QUICK], KINDS, also=TRAINED.keys() - ALIKE.keys() - QUICK
            )
            if not pair.marks
        ),
    ],
)
def test_every_method_starts_at_the_backbone_trains_and_leaves_its_codes_alone(backbone_folder, train, name, kind):
    method = TRAINED[name]
    task = SequenceClassification(backbone_folder("bert"), method, quantization=kind)
    found, before = [], {}

    def look(task):
        before.update(before or codes(task.model))
        found.extend(pair for adapter in adapters(task.model) for pair in outside(adapter))

    train(method, Watch(look), task=task, max_epochs=1)
    assert [(what, amount) for what, amount in found if not amount <= 0] == []
    after = codes(task.model)
    assert len(after) == 12
    assert all(torch.equal(after[name], code) for name, code in before.items())
    fresh = built(backbone_folder("bert"), method, kind=kind)
    started = {} if method is METHODS["FourierFT"] else named_changes(fresh.model)  # which starts at random
    assert all(change.delta_weight().norm() < 1e-4 for change in started.values())


@pytest.mark.parametrize("kind", KINDS)
def test_spectra_are_those_of_the_values_and_are_computed_once(backbone_folder, caplog, kind):
    caplog.set_level(logging.INFO, "lit_spectral.spectra.cache")
    for _ in range(2):
        task = built(backbone_folder("bert"), FCLoRA(rank=4, seed=KINDS.index(kind) + 50), kind=kind)
    adapter = adapters(task.model)[0]
    values = torch.linalg.svdvals(weight_matrix(adapter.base_layer).double())
    assert adapter.sigma_bar == pytest.approx(float(values.quantile(0.5)), rel=1e-4)
    drawn = torch.linalg.vecdot(adapter.u.mT, (weight_matrix(adapter.base_layer) @ adapter.v).mT)
    assert all((drawn.double()[:, None] - values).abs().min(1).values < 1e-4 * values[0])
    assert " 0 computed" in caplog.messages[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_alone_is_as_in_a_batch(backbone_folder, kind):
    task = built(backbone_folder("bert"), kind=kind).eval()
    rows = [torch.tensor([5, 6, 7]), torch.arange(4, 16)]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    with torch.no_grad():
        together = task({"input_ids": padded, "attention_mask": (padded != 0).long()})
        for row, logits in zip(rows, together, strict=True):
            alone = task({"input_ids": row[None], "attention_mask": torch.ones_like(row)[None]})
            torch.testing.assert_close(alone[0], logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [LoRA(rank=4), FCLoRA(rank=4), HiPLoRA(rank=4, principal_rank=4), MiLoRA(rank=4)])
def test_a_checkpoint_fits_the_codes_and_the_files_floats(backbone_folder, train, tmp_path, method):
    task = SequenceClassification(backbone_folder("bert"), method, quantization="nf4")
    train(method, task=task, max_epochs=1).save_checkpoint(tmp_path / "last.ckpt")
    again = load(tmp_path / "last.ckpt")
    assert again.loading.quantization == "nf4"
    plain = Task.load_from_checkpoint(tmp_path / "last.ckpt", quantization=None)
    assert not coded(plain.model)
    fold(plain.model)
    for loaded in (again, plain):
        state = trained_state(loaded.model)
        assert all(torch.equal(state[name], tensor) for name, tensor in trained_state(task.model).items())
    assert not any("quant" in name or "absmax" in name for name in torch.load(tmp_path / "last.ckpt")["state_dict"])


def test_a_checkpoint_on_codes_of_another_backbone_is_refused(backbone_folder, train, tmp_path):
    method = LoRA(rank=4)
    task = SequenceClassification(backbone_folder("bert"), method, quantization="nf4")
    train(method, task=task, max_steps=1).save_checkpoint(tmp_path / "last.ckpt")
    other = shutil.copytree(backbone_folder("bert"), tmp_path / "other")
    model = SequenceClassification(backbone_folder("bert"), num_labels=2).load_model(backbone_folder("bert"))[0].bert
    with torch.no_grad():
        model.embeddings.LayerNorm.weight.mul_(1.1)
    model.save_pretrained(other)
    for kind in ("nf4", None):
        with pytest.raises(InputError, match="whose weights differ"):
            Task.load_from_checkpoint(tmp_path / "last.ckpt", backbone=str(other), quantization=kind)


@pytest.mark.parametrize("method", [LoRA(rank=4), HiRA(rank=4), Peft(config={"peft_type": "LORA", "r": 4})])
def test_nothing_is_folded_into_codes(backbone_folder, method):
    task = built(backbone_folder("bert"), method)
    before = codes(task.model)
    with pytest.raises(InputError, match=r"fold: the backbone's weights are quantised.*quantization=None"):
        fold(task.model)
    with pytest.raises(InputError, match="fold: "):
        next(iter(named_changes(task.model).values())).fold() if adapters(task.model) else fold(task.model)
    assert all(torch.equal(codes(task.model)[name], code) for name, code in before.items())


def test_hira_says_what_it_multiplies_with(backbone_folder, caplog):
    caplog.set_level(logging.INFO, "lit_spectral.methods.hira")
    task = built(backbone_folder("bert"), HiRA(rank=4))
    assert caplog.messages == ["HiRA multiplies with the values that the quantised weights stand for"]
    adapter = adapters(task.model)[0]
    torch.nn.init.normal_(adapter.left)
    wanted = weight_matrix(adapter.base_layer) * (adapter.left @ adapter.right)
    torch.testing.assert_close(adapter.delta_weight(), wanted)
    x = torch.randn(2, adapter.in_features)
    torch.testing.assert_close(adapter(x) - adapter.base_layer(x), x @ wanted.mT, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "nf5"}, "quantization: there is no 'nf5'; "),
        ({"method": FullFineTuning()}, "model.quantization: full fine-tuning trains the weights themselves"),
    ],
)
def test_what_can_not_be_is_refused(backbone_folder, settings, message):
    with pytest.raises(InputError, match=message):
        built(backbone_folder("bert"), **settings)


@pytest.mark.parametrize("flags", [["--model.optimizer", "SGD"], ["--model.optimizer=SGD"]])
def test_an_optimizers_short_name_is_torchs_whatever_is_imported(flags, monkeypatch, tmp_path):
    import bitsandbytes  # noqa: F401

    monkeypatch.chdir(tmp_path)
    cli = SpectralCLI([f"--config={CONFIGS / 'fclora_roberta_mrpc.yaml'}", *flags], run=False)
    optimizer = cli.model.optimizer([torch.zeros(1, requires_grad=True)])
    assert type(optimizer) is torch.optim.SGD


def test_without_bitsandbytes_the_remedy_is_named(monkeypatch, backbone_folder):
    monkeypatch.setattr("lit_spectral.quantization.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"not installed; pip install 'lit-spectral\[quantization\]'"):
        built(backbone_folder("bert"))


def test_files_of_codes_are_taken_as_they_are_and_not_quantised_again(backbone_folder, tmp_path):
    from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig

    model = AutoModelForSequenceClassification.from_pretrained(
        backbone_folder("bert"),
        quantization_config=BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["classifier", ".*pooler"]),
    )
    folder = shutil.copytree(backbone_folder("bert"), tmp_path / "codes")
    model.save_pretrained(folder)
    assert "quantization_config" in json.loads((folder / "config.json").read_text())
    task = built(str(folder), kind=None)
    assert all(is_quantised(adapter.base_layer) for adapter in adapters(task.model))
    with pytest.raises(InputError, match="are quantised already; leave it out"):
        built(str(folder))


def test_a_copy_computes_the_same(backbone_folder):
    task = built(backbone_folder("bert")).eval()
    batch = {"input_ids": torch.arange(4, 12)[None], "attention_mask": torch.ones(1, 8, dtype=torch.int64)}
    assert torch.equal(copy.deepcopy(task)(batch), task(batch))


@pytest.mark.parametrize(("kind", "precision"), crossed(KINDS, ["bf16-mixed", "bf16-true"]))
def test_a_trainers_precision_leaves_codes_alone(backbone_folder, train, kind, precision):
    task = SequenceClassification(backbone_folder("bert"), FCLoRA(rank=4), quantization=kind, dtype="bfloat16")
    train(None, task=task, precision=precision, max_steps=2)
    kinds = {module.weight.dtype for module in coded(task.model).values()}
    assert kinds == {torch.uint8 if kind == "nf4" else torch.int8}


@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_on_codes_is_trained_evaluated_and_what_it_kept_is_measured(decoder_folder, data, tmp_path, kind):
    task = CausalLM(decoder_folder(), FCLoRA(rank=2), quantization=kind, gradient_checkpointing=True)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = pl.Trainer(max_steps=2, accelerator="cpu", default_root_dir=tmp_path, **quiet)
    trainer.fit(task, PromptedText(str(data), "{question}", "{reply}", batch_size=8, validation_rows=8))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    place = ["--include_path", str(data), "--output_path", str(tmp_path / "results.json")]
    evaluation.run(["--checkpoint", str(tmp_path / "last.ckpt"), "--tasks", "tiny_text", *place])
    found = json.loads((tmp_path / "results.json").read_text())["results"]["tiny_text"]
    assert 1 < found["word_perplexity,none"] < float("inf")
    (tmp_path / "text.txt").write_text("the cat sat on the mat and then the dog ran\n" * 20)
    retention.run(["--checkpoint", str(tmp_path / "last.ckpt"), "--corpora", str(tmp_path / "text.txt"),
                   "--output_path", str(tmp_path / "kept.json"), "--max_length", "16"])  # fmt: skip
    kept = json.loads((tmp_path / "kept.json").read_text())["retention"]
    assert kept
    assert all(0 <= float(value) < float("inf") for value in kept.values())
