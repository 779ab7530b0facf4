"""The texts on which a model is held near its base model, and the settings that name them."""

import math

import pytest
import torch
import transformers
from anchored import anchored, corpus, data, headless_folder  # noqa: F401 (fixtures)
from conftest import scalars

from lit_spectral.comparison.variants import pairs_of, variants
from lit_spectral.errors import InputError
from lit_spectral.generation import sample
from lit_spectral.methods import FCLoRA, LoRA
from lit_spectral.retention import anchoring
from lit_spectral.retention.texts import prompt_positions
from lit_spectral.tasks import Anchor, CausalLM


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": -1}, "model.anchor.weight must be at least 0"),
        ({"weight": math.nan}, "model.anchor.weight must be at least 0"),
        ({"every": 0}, "model.anchor.every must be at least 1"),
        ({"batch_size": 0}, "model.anchor.batch_size must be at least 1"),
        ({"max_length": 1}, "model.anchor.max_length must be at least 2"),
        ({"text": ""}, "model.anchor.text is empty"),
        ({"text": "self", "limit": None}, "model.anchor.limit: of generated texts there is no end"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(InputError, match=message):
        Anchor(**settings)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("SequenceClassification", {"text": "self"}, "model.anchor.text: self is for decoders"),
        ("MaskedLM", {"text": "self"}, "model.anchor.text: self is for decoders"),
        ("MaskedLM", {"text": "prompts"}, "model.anchor.text: masked words have no prompts"),
        ("CausalLM", {"text": "nowhere"}, "model.anchor.text: there is no text nowhere"),
        ("CausalLM", {"text": "CORPUS", "max_length": 10**5}, r"model.anchor.max_length: 100000 is above the \d+ that"),
    ],
)
def test_texts_that_are_none_for_a_task_are_refused(kind, settings, message, anchored, corpus):
    settings = {name: corpus if value == "CORPUS" else value for name, value in settings.items()}
    with pytest.raises(InputError, match=message):
        anchored(kind, Anchor(**settings))


def test_rows_without_prompts_are_refused(command, tmp_path):
    (tmp_path / "train.jsonl").write_text('{"q": "", "a": "the cat sat"}\n' * 8)
    (tmp_path / "validation.jsonl").write_text('{"q": "", "a": "the cat sat"}\n')
    flags = ["--data=PromptedText", f"--data.path={tmp_path}", "--data.prompt={q}", "--data.answer={a}"]
    with pytest.raises(InputError, match=r"model.anchor.text: the rows have no prompts apart from what is trained on"):
        command("fit", *flags, "--model.anchor.weight=1")


def test_positions_of_packed_prompts():
    """Two examples, of 3 + 2 and 2 + 1 tokens, and two tokens of padding; the first label of each is never scored."""
    labels = torch.tensor([[-100, -100, -100, 7, 8, -100, -100, 9, -100, -100]])
    batch = {"labels": labels, "position_ids": torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 0, 0]])}
    assert prompt_positions(batch)[0].nonzero().flatten().tolist() == [0, 1, 5]


def test_positions_leave_padding_and_ends_of_answers_out():
    labels = torch.tensor([[-100, -100, 5, 6, -100, -100], [-100, -100, -100, -100, 5, 6]])
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    assert prompt_positions({"labels": labels, "attention_mask": mask}).nonzero().tolist() == [
        [0, 0], [1, 0], [1, 1], [1, 2]
    ]  # fmt: skip


@pytest.fixture
def writer(decoder_folder):
    """A decoder that is sure of some tokens, and its tokenizer."""
    torch.manual_seed(0)
    task = CausalLM(decoder_folder(), LoRA(rank=2))
    task.configure_model()
    with torch.no_grad():
        task.model.lm_head.weight.mul_(40)
    return task.model.eval(), transformers.AutoTokenizer.from_pretrained(decoder_folder())


def test_a_models_own_text_is_drawn_from_its_predictions(writer):
    model, tokenizer = writer
    model.generation_config.update(top_k=1, temperature=0.1)  # of the files', which don't count
    torch.manual_seed(0)
    texts = sample(model, tokenizer, 1500, 2)["input_ids"]
    assert (texts[:, 0] == tokenizer.bos_token_id).all()
    with torch.no_grad():
        expected = 1500 * model(texts[:1, :1]).logits[0, 0].softmax(-1)
    found = torch.bincount(texts[:, 1], minlength=64)
    assert float(((found - expected) / (expected + 1).sqrt()).abs().max()) < 5
    assert (found > 0).sum() > 10


def test_a_models_own_text_ends_where_it_says_so(writer):
    model, tokenizer = writer
    torch.manual_seed(0)
    texts = sample(model, tokenizer, 64, 30)
    lengths, tokens = set(), {tokenizer.eos_token_id, model.generation_config.eos_token_id}
    for ids, mask in zip(texts["input_ids"].tolist(), texts["attention_mask"].tolist(), strict=True):
        ends = [i for i, token in enumerate(ids) if token in tokens and i > 0]
        length = ends[0] + 1 if ends else len(ids)
        assert mask == [1] * length + [0] * (len(ids) - length)
        lengths.add(length)
    assert len(lengths) > 5


def test_what_a_backbone_says_is_written_once_for_all_methods(anchored, tmp_path, monkeypatch):
    """And anew where another length was asked for, or the backbone computes otherwise."""
    monkeypatch.setenv("LIT_SPECTRAL_CACHE", str(tmp_path / "cache"))
    written = []
    monkeypatch.setattr(anchoring, "sample", lambda *args: written.append(args[2:]) or sample(*args))

    def first_distance(method, length=12, **made):
        settings = Anchor(every=1, text="self", limit=4, max_length=length)
        trainer = anchored("CausalLM", settings, max_steps=2, made={"method": method, **made})
        return scalars(trainer)["train/anchor"][1][1]

    alone = first_distance(LoRA(rank=4))
    assert first_distance(LoRA(rank=4)) == alone
    first_distance(FCLoRA(rank=2))
    assert written == [(4, 12)]
    first_distance(LoRA(rank=4), 9)
    assert written[1:] == [(4, 9)]
    first_distance(LoRA(rank=4), 9, dtype="bfloat16")
    assert written[2:] == [(4, 9)]


@pytest.mark.parametrize("text", ["self", "prompts", "CORPUS"])
def test_a_decoder_is_held_by_the_command_line(text, command, corpus, tmp_path):
    (tmp_path / "train.jsonl").write_text('{"q": "the dog", "a": "sat on the mat"}\n' * 8)
    (tmp_path / "validation.jsonl").write_text('{"q": "the dog", "a": "sat on the mat"}\n')
    flags = ["--data=PromptedText", f"--data.path={tmp_path}", "--data.prompt={q}", "--data.answer={a}"]
    flags += ["--data.batch_size=2", "--model.anchor.every=2", "--model.anchor.limit=4", "--model.anchor.max_length=12"]
    done = command("fit", *flags, f"--model.anchor.text={corpus if text == 'CORPUS' else text}")
    logged = scalars(done.trainer)["train/anchor"]
    assert [step for step, _ in logged] == [1, 3]
    assert logged[-1][1] > 0


def test_a_weight_is_swept():
    found = variants(["LoRA"], pairs_of(["--model.anchor.weight", "0.1,1", "--model.anchor.text", "self"]))
    assert [variant.name for variant in found] == ["LoRA weight=0.1", "LoRA weight=1"]
    assert found[1].flags() == ["--model.anchor.weight=1", "--model.anchor.text=self", "--model.method=LoRA"]


def test_it_is_set_by_flags_and_in_yaml(fit, tmp_path):
    """A mistake in a flag is a line that names it."""
    (tmp_path / "anchor.yaml").write_text("model: {init_args: {anchor: {every: 1, text: prompts}}}\n")
    flags = [f"--config={tmp_path}/anchor.yaml", "--model.anchor.weight=0.1", "--trainer.max_steps=2"]
    done = fit("lora_roberta_mrpc", *flags)
    assert done.model.anchor == Anchor(0.1, 1, "prompts")
    assert [step for step, _ in scalars(done.trainer)["train/anchor"]] == [0, 1]
    with pytest.raises(InputError, match=r"model.anchor.wieght: Anchor has no such setting; did you mean weight\?"):
        fit("lora_roberta_mrpc", "--model.anchor.wieght=1")
