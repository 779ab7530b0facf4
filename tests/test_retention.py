"""What is forgotten, on cases whose answer is known."""

import json
import math
import shutil
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from conftest import WORDS, scalars
from lit_spectral.callbacks import RetentionMonitor
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from lit_spectral import cli
from lit_spectral.adapters import adapters, fold
from lit_spectral.errors import InputError
from lit_spectral.methods import BitFit, FCLoRA, FullFineTuning, HiPLoRA, HiRA, LoRA, MoRA, Peft, PiSSA
from lit_spectral.retention import Retention, head, token_scores
from lit_spectral.retention.base_model import base_model
from lit_spectral.tasks import CausalLM, MaskedLM, SequenceClassification

METHODS = {
    "LoRA": LoRA(rank=2),
    "FCLoRA": FCLoRA(rank=2),
    "PiSSA": PiSSA(rank=2),
    "HiRA": HiRA(rank=2),
    "HiPLoRA": HiPLoRA(rank=2, principal_rank=4),
    "MoRA": MoRA(rank=2),
    "FullFineTuning": FullFineTuning(),
    "BitFit": BitFit(),
    "peft's LoRA": Peft(config={"peft_type": "LORA", "r": 2}),
    "peft's copies": Peft(config={"peft_type": "LORA", "r": 2, "modules_to_save": ["LayerNorm"]}),
}


def build(kind, folder, method):
    task = kind(folder, method, **({"num_labels": 2} if kind is SequenceClassification else {}))
    task.configure_model()
    return task


def disturb(task, scale=1.0):
    """Change whatever is trained, by much, since a random backbone's weights are small."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in task.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)


def measured(task, text, **options):
    retention = Retention({"words": text}, max_length=16, batch_size=4, **options)
    retention.prepare(task)
    return retention.measure(task)


@pytest.mark.parametrize("entries", [2**21, 25, 5])  # all tokens at a time, two, and fewer than one
def test_scores_are_the_definitions(entries, monkeypatch):
    monkeypatch.setattr("lit_spectral.retention.measures.CPU_ENTRIES", entries)
    generator = torch.Generator().manual_seed(0)
    logits, base = (torch.randn(7, 11, generator=generator) for _ in range(2))
    wanted = torch.randint(11, (7,), generator=generator)
    scores = token_scores(logits, base, wanted)
    p, q = (x.double().softmax(-1) for x in (logits, base))
    rows = torch.arange(7)
    expected = [
        -p[rows, wanted].log().sum(), (p.argmax(-1) == wanted).sum(), -q[rows, wanted].log().sum(),
        (q.argmax(-1) == wanted).sum(), -(q * p.log()).sum(), -(q * q.log()).sum(), 7,
    ]  # fmt: skip
    assert [float(score) for score in scores] == pytest.approx([float(value) for value in expected], rel=1e-6)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_backbone_has_forgotten_nothing_of_itself(method, backbone_folder, text):
    found = measured(build(MaskedLM, backbone_folder("bert"), method), text)
    assert found["words/forgetting_loss"] == pytest.approx(found["words/base_entropy"], rel=1e-6)
    assert found["words/loss"] == pytest.approx(found["words/base_loss"], rel=1e-6)
    assert found["words/accuracy"] == found["words/base_accuracy"]


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_base_model_is_the_backbone_whatever_was_trained(method, backbone_folder, text):
    before = measured(build(MaskedLM, backbone_folder("bert"), LoRA(rank=2)), text)
    task = build(MaskedLM, backbone_folder("bert"), method)
    disturb(task)
    state = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    flags = [parameter.requires_grad for parameter in task.parameters()]
    found = measured(task, text)
    for measure in ("base_loss", "base_accuracy", "base_entropy"):
        assert found[f"words/{measure}"] == pytest.approx(before[f"words/{measure}"], rel=1e-6)
    assert found["words/forgetting_loss"] > found["words/base_entropy"] + 5e-6
    assert all(torch.equal(tensor, state[name]) for name, tensor in task.state_dict().items())
    assert [parameter.requires_grad for parameter in task.parameters()] == flags


def test_forgetting_on_pages_is_that_of_peft_s_comparison(decoder_folder, tmp_path):
    """Mean loss of a token after less before, over the pages one by one, cut, in float64, by transformers' own loss."""
    folder = decoder_folder()
    generator = torch.Generator().manual_seed(0)
    pages = [" ".join(WORDS[i] for i in torch.randint(len(WORDS), (n,), generator=generator)) for n in (3, 30, 11, 2)]
    (tmp_path / "pages.jsonl").write_text("".join(json.dumps({"text": page}) + "\n" for page in pages))
    torch.manual_seed(0)  # which adapter decides how much is forgotten
    task = build(CausalLM, folder, LoRA(rank=2))
    disturb(task)
    found = measured(task, str(tmp_path / "pages.jsonl"), pages=True, limit=3)
    tokenizer = AutoTokenizer.from_pretrained(folder)

    @torch.no_grad()
    def mean_loss(model):
        sums, count = 0.0, 0
        for page in pages[:3]:
            ids = torch.tensor([tokenizer(page)["input_ids"][:16]])
            tokens = ids.shape[1] - 1
            sums, count = sums + float(model(input_ids=ids, labels=ids).loss) * tokens, count + tokens
        return sums / count

    before = mean_loss(AutoModelForCausalLM.from_pretrained(folder).double())
    fold(task.model)
    after = mean_loss(task.model.double())
    assert found["words/loss"] - found["words/base_loss"] == pytest.approx(after - before, rel=1e-4)
    assert abs(after - before) > 1e-2


def test_pages_are_a_decoder_s(backbone_folder, text):
    with pytest.raises(InputError, match="pages are of a decoder's corpora"):
        measured(build(MaskedLM, backbone_folder("bert"), LoRA(rank=2)), text, pages=True)


def test_a_change_of_the_head_alone_is_no_loss(backbone_folder, text):
    task = build(SequenceClassification, backbone_folder("bert"), LoRA(rank=2))
    with torch.no_grad():
        task.model.classifier.weight.add_(1)
    found = measured(task, text)
    assert found["words/loss"] == found["words/base_loss"]


def test_an_encoder_under_another_head_is_measured_by_its_pretrained_one(backbone_folder, text):
    expected = measured(build(MaskedLM, backbone_folder("bert"), LoRA(rank=2)), text)
    found = measured(build(SequenceClassification, backbone_folder("bert"), LoRA(rank=2)), text)
    assert found == pytest.approx(expected, rel=1e-6)


def test_a_planted_change_shows_with_its_sign(decoder_folder, text):
    task = build(CausalLM, decoder_folder(), LoRA(rank=2, target_modules=["down_proj"]))
    data = Retention({"words": text}, max_length=16)
    data.prepare(task)
    # Towards the text and away from it, by a step along the gradient of its own loss.
    batch = data._texts["words"][0]
    for adapter in adapters(task.model):
        torch.nn.init.normal_(adapter.left, std=0.02, generator=torch.Generator().manual_seed(0))
    start = data.measure(task)["words/loss"]
    task.model(**batch).loss.backward()
    for direction, sign in ((-1, -1), (2, 1)):
        with torch.no_grad():
            for parameter in task.model.parameters():
                if parameter.requires_grad:
                    parameter.add_(parameter.grad, alpha=0.05 * direction)
        found = data.measure(task)
        assert math.copysign(1, found["words/loss"] - start) == sign
        assert found["words/perplexity"] == pytest.approx(math.exp(found["words/loss"]))


def test_an_encoder_without_a_head_drifts(backbone_folder, text, tmp_path, caplog):
    folder = tmp_path / "headless"
    AutoModel.from_pretrained(backbone_folder("bert")).save_pretrained(folder)
    AutoTokenizer.from_pretrained(backbone_folder("bert")).save_pretrained(folder)
    task = build(SequenceClassification, str(folder), LoRA(rank=2))
    assert measured(task, text) == {"words/drift": pytest.approx(0, abs=1e-6)}
    assert "has no masked-language head" in caplog.text
    disturb(task)
    # By hand, line by line, with nothing masked.
    tokenizer = AutoTokenizer.from_pretrained(folder)
    cosines = []
    for line in Path(text).read_text(encoding="utf-8").splitlines():
        inputs = tokenizer(line, truncation=True, max_length=16, return_tensors="pt")
        with torch.no_grad():
            after = task.eval().encoder(**inputs).last_hidden_state[0].mean(0)
            with base_model(task, {}):
                before = task.encoder(**inputs).last_hidden_state[0].mean(0)
        cosines.append(torch.cosine_similarity(before, after, dim=0))
    expected = 1 - float(torch.stack(cosines).mean())
    assert measured(task, text)["words/drift"] == pytest.approx(expected, rel=1e-4)
    assert expected > 1e-3


def test_sentence_pairs_give_drift_and_correlation(backbone_folder, tmp_path):
    rows = "".join(
        f'{{"sentence1": "the {a} sat", "sentence2": "the {b} ran", "label": {k}}}\n'
        for k, (a, b) in enumerate(zip(WORDS[:5], WORDS[5:10], strict=True))
    )
    (tmp_path / "validation.jsonl").write_text(rows)
    task = build(SequenceClassification, backbone_folder("bert"), LoRA(rank=2))
    retention = Retention(sts=str(tmp_path), batch_size=2)
    retention.prepare(task)
    found = retention.measure(task)
    assert found["sts/drift"] == pytest.approx(0, abs=1e-6)
    assert found["sts/spearman"] == found["sts/base_spearman"]
    # By hand, pair by pair without padding.
    tokenizer = AutoTokenizer.from_pretrained(backbone_folder("bert"))
    cosines = []
    for a, b in zip(WORDS[:5], WORDS[5:10], strict=True):
        with torch.no_grad():
            u, v = (
                task.eval().encoder(**tokenizer(s, return_tensors="pt")).last_hidden_state[0].mean(0)
                for s in (f"the {a} sat", f"the {b} ran")
            )
        cosines.append(float(torch.cosine_similarity(u, v, dim=0)))
    ranks = torch.tensor(cosines).argsort().argsort().double()
    expected = torch.corrcoef(torch.stack([ranks, torch.arange(5).double()]))[0, 1]
    assert found["sts/spearman"] == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "architecture", "method", "options", "message"),
    [
        (CausalLM, "llama", LoRA(rank=2), {"sts": "x"}, "sts compares the states of encoders"),
        (
            SequenceClassification, "bert", Peft(config={"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2}),
            {}, "a learned prompt is no part of the encoder",
        ),
    ],
)  # fmt: skip
def test_what_cant_be_measured_is_said(kind, architecture, method, options, message, backbone_folder, text):
    with pytest.raises(InputError, match=message):
        measured(build(kind, backbone_folder(architecture), method), text, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing to measure on; give corpora"),
        ({"corpora": {"sts": "a.txt"}, "sts": "b"}, "sts is what the sentence pairs go by"),
        ({"corpora": {"a": "a.txt"}, "batch_size": -1}, "batch_size is at least 1, not -1"),
    ],
)
def test_what_to_measure_on_is_checked_first(options, message):
    with pytest.raises(InputError, match=message):
        Retention(**options)


def test_a_text_too_short_to_be_masked_is_an_error(backbone_folder, tmp_path):
    (tmp_path / "short.txt").write_text("the\nthe\n")
    with pytest.raises(InputError, match="no token was masked"):
        measured(build(MaskedLM, backbone_folder("bert"), LoRA(rank=2)), str(tmp_path / "short.txt"))


@pytest.mark.parametrize(
    "row", ['{"sentence1": "a", "sentence2": "b", "label": null}', '{"sentence1": null, "sentence2": "b", "label": 1}']
)
def test_a_sentence_pair_that_is_none_is_named(row, backbone_folder, tmp_path):
    (tmp_path / "validation.jsonl").write_text('{"sentence1": "a", "sentence2": "b", "label": 1}\n' + row + "\n")
    retention = Retention(sts=str(tmp_path))
    with pytest.raises(InputError, match=r"validation.jsonl, line 2: (its label is empty|sentence1 is None)"):
        retention.prepare(build(SequenceClassification, backbone_folder("bert"), LoRA(rank=2)))


def test_a_folded_model_has_no_base(backbone_folder, text):
    task = build(MaskedLM, backbone_folder("bert"), LoRA(rank=2))
    fold(task.model)
    with pytest.raises(InputError, match="unfold"):
        measured(task, text)


def test_the_monitor_logs_start_epochs_and_steps(train, text):
    monitor = RetentionMonitor({"words": text}, every_n_steps=3, max_length=16)
    trainer = train(LoRA(rank=2), monitor, lr=0.5)
    logged = scalars(trainer)["retention/words/accuracy"]
    assert [step for step, _ in logged] == [0, 2, 5, 7, 8, 11, 14, 15]
    forgetting, entropy = (scalars(trainer)[f"retention/words/{name}"] for name in ("forgetting_loss", "base_entropy"))
    assert forgetting[0][1] == pytest.approx(entropy[0][1], rel=1e-5)
    assert forgetting[-1][1] > entropy[-1][1]


def test_training_goes_on_as_without_the_monitor(train, text):
    def weights(*callbacks):
        trainer = train(LoRA(rank=2, dropout=0.1), *callbacks)
        return [p.detach().clone() for p in trainer.lightning_module.model.parameters() if p.requires_grad]

    monitored = weights(RetentionMonitor({"words": text}, every_n_steps=2, max_length=16))
    assert all(torch.equal(a, b) for a, b in zip(monitored, weights(), strict=True))


def test_the_monitor_is_configured_from_the_command_line(fit, text):
    monitor = f'{{"class_path": "RetentionMonitor", "init_args": {{"corpora": {{"words": "{text}"}}}}}}'
    done = fit("lora_roberta_mrpc", f"--trainer.callbacks+={monitor}", "--trainer.limit_train_batches=2")
    (callback,) = [c for c in done.trainer.callbacks if isinstance(c, RetentionMonitor)]
    assert "words/accuracy" in callback.latest
    assert isinstance(done.trainer, pl.Trainer)


def test_a_checkpoint_is_measured_through_the_command_line(train, text, tmp_path, capsys):
    monitor = RetentionMonitor({"words": text}, max_length=16)
    train(LoRA(rank=2), monitor, lr=0.5, enable_checkpointing=True)
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    cli.main(["retain", "--checkpoint", str(checkpoint), "--corpora", f"words={text}", "--max_length", "16"])
    assert "forgetting loss" in capsys.readouterr().out
    report = json.loads((checkpoint.parents[1] / "retention.json").read_text())
    assert report["retention"] == pytest.approx(monitor.latest, rel=1e-5)
    assert report["model"]["method"]["name"] == "LoRA"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "required: --checkpoint"),
        (["--checkpoint", "x.ckpt"], "there is no file"),
        (["--checkpoint", "x.ckpt", "--x"], "there is no --x"),
        (["--checkpoint", "x.ckpt", "--device", "cuda:99"], "device: cuda:99 can't be used"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(flags, message, capsys):
    with pytest.raises(SystemExit):
        cli.main(["retain", *flags])
    assert message in capsys.readouterr().err


@pytest.fixture
def headless(backbone_folder, tmp_path):
    """A folder of an encoder whose files have no masked-language head."""
    folder = tmp_path / "headless"
    shutil.copytree(backbone_folder("bert"), folder)
    AutoModel.from_pretrained(folder).save_pretrained(folder)
    return str(folder)


def test_a_head_is_fitted_once_and_then_measures_as_any_other(headless, text, monkeypatch):
    monkeypatch.setattr(head, "STEPS", 40)
    monkeypatch.setattr(head, "LEARNING_RATE", 3e-2)
    task = build(SequenceClassification, headless, LoRA(rank=2))
    fitted = measured(task, text, fit_head=text)
    assert fitted["words/accuracy"] == fitted["words/base_accuracy"]  # nothing was trained yet
    assert fitted["words/loss"] < math.log(64) - 0.4  # 64 tokens; without fitting it is all but uniform

    def again(*args):
        raise AssertionError("fitted twice")

    monkeypatch.setattr(head, "_fit", again)
    assert measured(task, text, fit_head=text) == fitted


def test_a_head_leaves_random_numbers_and_encoder_alone(headless, text, monkeypatch):
    monkeypatch.setattr(head, "STEPS", 2)
    monkeypatch.setattr(head, "LINES", 23)  # not the other test's
    state = torch.get_rng_state()
    model = head.fitted_head(headless, text, torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), state)
    kept = AutoModel.from_pretrained(headless).state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in model.bert.state_dict().items())
