"""What was trained elsewhere, in a task that trains nothing: measured, it is what it was, whatever it lies in."""

import json
from pathlib import Path

import lightning.pytorch as pl
import peft
import pytest
import torch
import transformers
from conftest import WORDS, move
from lit_spectral.datamodules import GLUE, MaskedText, PromptedText, SQuAD
from squad_rows import questions, write

from lit_spectral import cli
from lit_spectral.adapters import adapters
from lit_spectral.checkpoint import load, load_given, steps_of
from lit_spectral.errors import InputError
from lit_spectral.methods import BitFit, FullFineTuning, Given, HiRA, LoRA, Method, Peft, PiSSA
from lit_spectral.retention import Retention
from lit_spectral.tasks import CausalLM, MaskedLM, QuestionAnswering, SequenceClassification
from lit_spectral.updates.exports import write as export
from lit_spectral.updates.sources import read

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
TOKENS = {"input_ids": torch.arange(5, 37).view(4, 8), "attention_mask": torch.ones(4, 8, dtype=torch.long)}
TASKS = {
    "SequenceClassification": (SequenceClassification, "bert"),
    "QuestionAnswering": (QuestionAnswering, "bert"),
    "MaskedLM": (MaskedLM, "bert"),
    "CausalLM": (CausalLM, "llama"),
    "CausalLM of Conv1D": (CausalLM, "gpt2"),
}
METHODS = {
    "LoRA": LoRA(rank=2),
    "PiSSA": PiSSA(rank=2),
    "HiRA": HiRA(rank=2),
    "FullFineTuning": FullFineTuning(),
    "BitFit": BitFit(),
    "DoRA": Peft(config={"peft_type": "LORA", "r": 2, "use_dora": True}),
    "peft's LoRA": Peft(config={"peft_type": "LORA", "r": 2}),
}
FORMS = {"LoRA": ("peft", "merged"), "PiSSA": ("peft",)}  # of the others merged alone
CASES = [
    pytest.param(task, method, id=f"{task}, {method}")
    for task in TASKS
    for method in METHODS
    if task == "SequenceClassification" or method in {"LoRA", "FullFineTuning"}
]


@pytest.fixture
def text(tmp_path):
    generator = torch.Generator().manual_seed(0)
    lines = [" ".join(WORDS[i] for i in torch.randint(len(WORDS), (12,), generator=generator)) for _ in range(24)]
    (tmp_path / "text.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(tmp_path / "text.txt")


@pytest.fixture
def data_of(mrpc_folder, text, tmp_path):
    """What a task reads, a new one each time."""

    def make(kind):
        if kind is SequenceClassification:
            return GLUE("mrpc", mrpc_folder, batch_size=4)
        if kind is QuestionAnswering:
            (tmp_path / "squad").mkdir(exist_ok=True)
            for split in ("train", "validation"):
                write(tmp_path / "squad", split, questions(6, 0))
            return SQuAD(path=str(tmp_path / "squad"), batch_size=2, stride=8, max_query_length=8)
        if kind is MaskedLM:
            return MaskedText(text, max_length=16, batch_size=4)
        for split in ("train", "validation"):
            write(tmp_path, split, [{"q": "the cat", "a": "sat"}] * 4)
        return PromptedText(str(tmp_path), "{q}", "{a}", batch_size=2)

    return make


@pytest.fixture
def folder_of(backbone_folder, decoder_folder):
    """From an architecture, or a folder, to a folder of a model."""

    def folder(name):
        if Path(name).is_dir():
            return name
        return decoder_folder(name) if name in {"llama", "gpt2"} else backbone_folder(name)

    return folder


@pytest.fixture
def checkpoint(folder_of, data_of, tmp_path):
    """The path of a checkpoint whose trained tensors have been moved by much."""

    def make(kind, architecture, method, name="a"):
        pl.seed_everything(0)
        task = kind(folder_of(architecture), method)
        trainer = pl.Trainer(max_steps=1, limit_val_batches=0, enable_checkpointing=False, **QUIET)
        trainer.fit(task, data_of(kind))
        move(task.model, 0.05)
        trainer.save_checkpoint(tmp_path / f"{name}.ckpt", weights_only=True)
        return str(tmp_path / f"{name}.ckpt")

    return make


@pytest.fixture
def lora(checkpoint):
    return checkpoint(SequenceClassification, "bert", LoRA(rank=2))


@pytest.fixture
def sources_of(tmp_path, folder_of):
    """From a checkpoint to all that it can be given as: itself, and its exports."""

    def make(path, architecture, method):
        found = {"ckpt": path}
        for form in FORMS.get(method, ("merged",)):
            found[form] = str(tmp_path / form)
            export(read(path), Path(found[form]), form)
        return [(source, folder_of(architecture) if name == "merged" else None) for name, source in found.items()]

    return make


def outputs(task):
    with torch.no_grad():
        found = task.eval().model(**TOKENS)
    return torch.cat([value.flatten() for name, value in found.items() if "logits" in name])


def near(found, expected, error=1e-5):
    assert (found - expected).norm() <= error * expected.norm()


def retained(task, text):
    retention = Retention({"words": text}, limit=4, max_length=16)
    retention.prepare(task)
    return retention.measure(task)


@pytest.mark.parametrize(("task", "method"), CASES)
def test_whatever_it_lies_in_it_computes_and_has_kept_the_same(checkpoint, sources_of, text, task, method):
    kind, architecture = TASKS[task]
    path = checkpoint(kind, architecture, METHODS[method])
    before = load(path)
    expected, kept = outputs(before), retained(before, text)
    for source, backbone in sources_of(path, architecture, method):
        found = load_given(source, backbone)
        assert type(found) is kind
        near(outputs(found), expected)
        assert retained(found, text) == pytest.approx(kept, rel=1e-4)
        assert steps_of(source, found) == (0 if backbone else 1)


def test_embeddings_that_are_the_head_too_change_once(checkpoint, decoder_folder, tmp_path, text):
    config = transformers.AutoConfig.from_pretrained(decoder_folder(), tie_word_embeddings=True)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "tied")
    transformers.AutoTokenizer.from_pretrained(decoder_folder()).save_pretrained(tmp_path / "tied")
    path = checkpoint(CausalLM, str(tmp_path / "tied"), FullFineTuning())
    expected = load(path)
    export(read(path), tmp_path / "merged", "merged")
    found = load(tmp_path / "merged", str(tmp_path / "tied"))
    near(outputs(found), outputs(expected))
    assert retained(found, text) == pytest.approx(retained(expected, text), rel=1e-4)


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
@pytest.mark.slow
def test_with_an_adapter_verbs_say_what_they_say_of_its_checkpoint(fit, verb, tmp_path):
    trained = fit("fclora_roberta_mrpc", "--trainer.max_steps=4", "--model.optimizer.lr=0.05")
    path = trained.trainer.checkpoint_callback.last_model_path or next(map(str, tmp_path.rglob("*.ckpt")))
    export(read(path), tmp_path / "adapter", "peft")
    said = []
    for flag in (f"--ckpt_path={path}", f"--adapter={path}", f"--adapter={tmp_path / 'adapter'}"):
        found = fit("fclora_roberta_mrpc", flag, command=verb)
        written = [*Path(found.trainer.log_dir).rglob("predictions.jsonl")]
        metrics = {name: float(value) for name, value in found.trainer.callback_metrics.items()}
        said.append(metrics if verb != "predict" else written[-1].read_text(encoding="utf-8"))
    if verb == "predict":
        rows = [[json.loads(line) for line in each.splitlines()] for each in said]
        assert [[row["label"] for row in each] for each in rows[1:]] == [[row["label"] for row in rows[0]]] * 2
    else:
        assert said[1] == pytest.approx(said[0], rel=1e-5)
        assert said[2] == pytest.approx(said[0], rel=1e-5)


def test_nothing_of_it_is_trained_or_kept(lora, data_of, tmp_path):
    task = SequenceClassification(load(lora).backbone, Given(source=lora))
    trainer = pl.Trainer(max_steps=1, enable_checkpointing=False, **QUIET)
    with pytest.raises(InputError, match="Given puts on what was trained before, and trains nothing"):
        trainer.fit(task, data_of(SequenceClassification))
    trainer.validate(task, data_of(SequenceClassification), verbose=False)
    with pytest.raises(InputError, match="Given has trained nothing to keep"):
        trainer.save_checkpoint(tmp_path / "b.ckpt")


def test_retain_takes_it_and_writes_here(lora, text, tmp_path, monkeypatch):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    inside = str(tmp_path / "run" / "checkpoints" / "last.ckpt")
    Path(lora).rename(inside)
    export(read(inside), tmp_path / "adapter", "peft")
    monkeypatch.chdir(tmp_path)
    flags = ["--corpora", text, "--limit=4", "--max_length=16"]
    cli.main(["retain", "--checkpoint", inside, *flags])
    cli.main(["retain", "--adapter", "adapter", *flags])
    one, other = (json.loads(Path(place, "retention.json").read_text(encoding="utf-8")) for place in ("run", "."))
    assert other["retention"] == pytest.approx(one["retention"], rel=1e-4)


def test_the_harness_scores_it(checkpoint, sources_of):
    from lit_spectral.evaluation.model import CheckpointLM  # which takes seconds

    path = checkpoint(CausalLM, "llama", LoRA(rank=2))
    expected = outputs(load(path))
    for source, backbone in sources_of(path, "llama", "LoRA"):
        model = CheckpointLM(source, backbone, device="cpu")
        assert model.step == (0 if backbone else 1)
        with torch.no_grad():
            near(model.model(**TOKENS).logits.flatten(), expected)


def test_an_adapter_of_peft_alone_has_as_many_classes_as_its_head(backbone_folder, tmp_path):
    auto, folder = transformers.AutoModelForSequenceClassification, backbone_folder("mpnet")
    model = auto.from_pretrained(folder, num_labels=5)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q", "v"], init_lora_weights=False)
    wrapped = peft.get_peft_model(model, config)
    wrapped.save_pretrained(tmp_path / "adapter")
    near(outputs(load(tmp_path / "adapter")), wrapped.eval()(**TOKENS).logits.detach().flatten())


def test_no_method_but_this_trains_nothing():
    assert [kind for kind in Method.__subclasses__() if not kind.trains] == [Given]


@pytest.fixture
def refused(tmp_path, backbone_folder, checkpoint, lora):
    """A source and flags that can't be used, by what is wrong with them."""

    def make(what):
        if what == "another backbone":
            model = transformers.AutoModelForMaskedLM.from_pretrained(backbone_folder("bert"))
            with torch.no_grad():
                model.bert.encoder.layer[0].output.dense.weight.mul_(1.1)
            model.save_pretrained(tmp_path / "other")
            transformers.AutoTokenizer.from_pretrained(backbone_folder("bert")).save_pretrained(tmp_path / "other")
            export(read(lora), tmp_path / "adapter", "peft")
            return str(tmp_path / "adapter"), str(tmp_path / "other")
        if what == "a prompt":
            config = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2}
            return checkpoint(SequenceClassification, "bert", Peft(config=config), "b"), None
        if what == "no backbone":
            export(read(lora), tmp_path / "adapter", "peft")
            file = tmp_path / "adapter" / "adapter_config.json"
            settings = json.loads(file.read_text(encoding="utf-8")) | {"base_model_name_or_path": None}
            file.write_text(json.dumps(settings), encoding="utf-8")
            return str(tmp_path / "adapter"), None
        if what == "tuned weights without one":
            return backbone_folder("bert"), None
        return str(tmp_path), None

    return make


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("another backbone", "was trained on a backbone with other weights"),
        ("a prompt", "prompts have no ΔW"),
        ("no backbone", "it does not say which backbone it is of; give --backbone"),
        ("tuned weights without one", "are read against their backbone; give --backbone"),
        ("an empty folder", "neither adapter_config.json .* nor config.json .* is there"),
    ],
)
def test_what_cant_be_given_is_refused_in_one_line(refused, what, said):
    source, backbone = refused(what)
    with pytest.raises(InputError, match=said):
        load_given(source, backbone)


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        (QuestionAnswering, {}, "it is of a BertForSequenceClassification, and the task's model is a BertForQ"),
        (SequenceClassification, {"num_labels": 3}, "its classifier.bias is 2, the task's 3"),
    ],
)
def test_another_task_is_refused(lora, backbone_folder, kind, settings, said):
    task = kind(backbone_folder("bert"), Given(source=lora), **settings)
    with pytest.raises(InputError, match=said):
        task.configure_model()


def test_a_head_that_nobody_brings_is_not_random(backbone_folder, tmp_path):
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(backbone_folder("llama"))
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(settings | {"auto_mapping": None}), encoding="utf-8")  # which names the class
    task = SequenceClassification(backbone_folder("llama"), Given(source=str(tmp_path / "adapter")), num_labels=2)
    with pytest.raises(InputError, match=r"neither it nor the backbone's files have score\.weight"):
        task.configure_model()


@pytest.mark.parametrize("settings", [{}, {"source": "x", "target_modules": ["query"]}])
def test_settings_that_say_nothing_are_refused(settings):
    with pytest.raises(InputError, match=r"model\.method"):
        Given(**settings)


def test_maps_are_wrapped_once_however_often_it_is_exchanged(lora):
    task = load_given(lora)
    before, number = outputs(task), len(adapters(task.model))
    task.method.put(task.method.read().scaled(0.0))
    assert not torch.equal(outputs(task), before)
    task.method.put(read(lora))
    assert torch.equal(outputs(task), before)
    assert len(adapters(task.model)) == number
