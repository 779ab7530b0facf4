"""Directions by the energy that they hold, and the texts on which inputs are looked at."""

import logging
from pathlib import Path

import pytest
import torch
import transformers
from conftest import ARCHITECTURES, WORDS

from lit_spectral import input_text
from lit_spectral.adapters import adapters, find_targets
from lit_spectral.checkpoint import load
from lit_spectral.errors import InputError
from lit_spectral.input_text import input_tokens
from lit_spectral.methods import FCLoRA, HiPLoRA, LoRA, ProjLoRA
from lit_spectral.spectra.input_directions import Fed, leading_input_directions
from lit_spectral.tasks import CausalLM, SequenceClassification
from lit_spectral.updates import Delta, Pair, Update
from lit_spectral.updates.backbone import Backbone
from lit_spectral.updates.mending import mend


def inputs(encoder, tokens):
    """What each default target is given, (tokens, in), float64, by its path."""
    found = {}
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, args, name=name: found.setdefault(name, []).append(args[0].detach().double().flatten(0, -2))
        )
        for name, layer in find_targets(encoder, None).items()
    ]
    encoder.eval()(tokens)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(calls) for name, calls in found.items()}


def some_tokens(length=24):
    return torch.randint(64, (8, length), generator=torch.Generator().manual_seed(1))


def model_of(architecture):
    torch.manual_seed(0)
    return ARCHITECTURES[architecture]()


@pytest.fixture
def corpus(tmp_path):
    file = tmp_path / "corpus.txt"
    draws = torch.randint(len(WORDS), (2000,), generator=torch.Generator().manual_seed(0)).tolist()
    file.write_text(" ".join(WORDS[i] for i in draws) + "\n")
    return str(file)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.999])
@pytest.mark.parametrize("architecture", ["bert", "llama", "gpt2"])
def test_as_few_directions_as_hold_the_share(architecture, share):
    encoder, tokens = model_of(architecture).base_model, some_tokens()
    found = leading_input_directions(Fed(encoder, find_targets(encoder, None), tokens), share)
    for name, x in inputs(encoder, tokens).items():
        sigma, v = torch.linalg.svd(x, full_matrices=False)[1:]
        held = sigma.square().cumsum(0) / sigma.square().sum()
        count = next(k for k, part in enumerate(held.tolist(), 1) if part >= share)
        assert found[name].shape[1] == count
        overlap = torch.linalg.svdvals(found[name].double().mT @ v[:count].mT)
        gap = float(sigma[count - 1] - sigma[count]) if count < len(sigma) else 1.0
        assert overlap.min() > 1 - 1e-5 or gap < 1e-3 * float(sigma[0])


def test_of_a_map_that_is_used_several_times_they_hold_it_of_all_calls():
    encoder, tokens = model_of("albert").base_model, some_tokens()
    found = leading_input_directions(Fed(encoder, find_targets(encoder, None), tokens), 0.9)
    for name, x in inputs(encoder, tokens).items():
        assert (x @ found[name].double()).norm() ** 2 >= 0.9 * x.norm() ** 2 * (1 - 1e-6)
        assert found[name].shape[1] < 32


METHODS = {
    "LoRA": (lambda **kw: LoRA(rank=4, **kw), 4),
    "FCLoRA": (lambda **kw: FCLoRA(rank=4, principal_rank=6, **kw), 10),
    "HiPLoRA": (lambda **kw: HiPLoRA(rank=4, principal_rank=6, **kw), 10),
    "ProjLoRA": (lambda **kw: ProjLoRA(rank=4, principal_rank=6, **kw), 10),
}


@pytest.mark.parametrize("method", METHODS)
def test_there_is_room_for_the_rank_whatever_the_share(method, caplog):
    make, taken = METHODS[method]
    model = model_of("llama")
    with caplog.at_level(logging.INFO, "lit_spectral"):
        make(input_rank=0.9999).apply(model, model.base_model)
    for adapter in adapters(model):
        # Some of them are principal, and held already.
        held = torch.cat(adapter.kept_out_of()[1], dim=1)
        assert 32 - taken - 6 <= adapter.right_basis.shape[1] <= 32 - taken
        assert held.shape[1] <= 32 - 4
    (line,) = [message for message in caplog.messages if message.startswith("input_rank")]
    assert f"ignores {32 - taken} to {32 - taken} directions of a map's inputs (random), median {32 - taken}" in line


def test_the_number_1_is_one_direction_and_a_share_says_how_many():
    counts = {}
    for rank in (1, 0.3):
        model = model_of("llama")
        LoRA(rank=4, input_rank=rank).apply(model, model.base_model)
        counts[rank] = {adapter.right_basis.shape[1] for adapter in adapters(model)}
    assert counts[1] == {1}
    assert min(counts[0.3]) > 1


@pytest.mark.parametrize("method", METHODS)
def test_every_map_ignores_them_after_training_on_the_backbones_own_text(method, decoder_folder, tmp_path, train_lm):
    make, _ = METHODS[method]
    task = train_lm(make(input_rank=0.5, input_text="self"))
    tokens = task.method._tokens
    encoder = transformers.AutoModelForCausalLM.from_pretrained(task.backbone).base_model
    bases = leading_input_directions(Fed(encoder, find_targets(encoder, None), tokens), 0.5)
    for name, module in task.encoder.named_modules():
        if name in bases:
            right = module.columns()[1].detach().double()
            assert (right.mT @ bases[name].double()).norm() < 1e-5 * right.norm()


@pytest.fixture
def train_lm(decoder_folder):
    """Three steps of a decoder; returns the task."""
    import lightning.pytorch as pl

    def run(method, architecture="llama", file=None):
        pl.seed_everything(0)
        task = CausalLM(decoder_folder(architecture), method, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2))
        rows = [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row} for row in some_tokens(12)]
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = pl.Trainer(max_steps=3, accelerator="cpu", enable_model_summary=False, **quiet)
        trainer.fit(task, torch.utils.data.DataLoader(rows, batch_size=4))
        if file is not None:
            trainer.save_checkpoint(file)
        return task

    return run


def test_the_backbones_own_text_is_drawn_from_all_that_it_holds_possible(decoder_folder):
    """Token by token, from whole distributions, by hand."""
    model = transformers.AutoModelForCausalLM.from_pretrained(decoder_folder())
    before = torch.random.get_rng_state()
    said = input_tokens("self", model.base_model, model, decoder_folder(), seed=3)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(3)
    ids = torch.full((8, 1), model.config.bos_token_id)
    with torch.no_grad():
        while ids.shape[1] < 128:
            ids = torch.cat([ids, torch.multinomial(model(ids).logits[:, -1].softmax(-1), 1)], dim=1)
    assert torch.equal(said, ids)
    assert (said == model.config.eos_token_id).any()  # and goes on


def test_it_is_said_once_and_by_each_seed_otherwise(decoder_folder, monkeypatch):
    model = transformers.AutoModelForCausalLM.from_pretrained(decoder_folder())
    first, other = (input_tokens("self", model.base_model, model, "", seed=seed) for seed in (5, 6))
    assert not torch.equal(first, other)

    def again(*args):
        raise AssertionError("said twice")

    monkeypatch.setattr(input_text, "_said", again)
    assert torch.equal(input_tokens("self", model.base_model, model, "", seed=5), first)


def test_a_decoder_under_another_head_is_asked_with_its_own(decoder_folder):
    """That of its files."""
    whole = transformers.AutoModelForCausalLM.from_pretrained(decoder_folder())
    task = SequenceClassification(decoder_folder(), LoRA(rank=4, input_rank=0.5, input_text="self"), num_labels=2)
    task.configure_model()
    assert torch.equal(task.method._tokens, input_tokens("self", whole.base_model, whole, ""))


def test_other_weights_than_those_that_are_adapted_say_nothing(decoder_folder):
    encoder = model_of("llama").base_model
    with pytest.raises(InputError, match="self would be said by other weights"):
        input_tokens("self", encoder, None, decoder_folder(), digest="another-digest")


def test_a_corpus_is_read_by_its_first_windows(decoder_folder, corpus):
    model = transformers.AutoModelForCausalLM.from_pretrained(decoder_folder())
    found = input_tokens(corpus, model.base_model, model, decoder_folder())
    tokenizer = transformers.AutoTokenizer.from_pretrained(decoder_folder())
    ids = tokenizer(Path(corpus).read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]
    assert found.tolist() == [[tokenizer.bos_token_id, *ids[47 * row : 47 * (row + 1)]] for row in range(8)]


@pytest.mark.parametrize(
    ("architecture", "text", "said"),
    [
        (
            "bert",
            "self",
            "input_text: self is text that a decoder says, and BertModel predicts no next",
        ),
        (
            "llama",
            "nowhere",
            "input_text: there is no text nowhere; there are bookcorpus, .*; a file or a folder will do",
        ),
        ("llama", "", "input_text: none is given; give random, self, or a corpus"),
    ],
)
def test_what_can_not_be_read_says_so(backbone_folder, architecture, text, said):
    model = transformers.AutoModel.from_pretrained(backbone_folder(architecture))
    with pytest.raises(InputError, match=f"^{said}"):  # noqa: PT012
        method = LoRA(rank=4, input_rank=1, input_text=text)
        method.prepare(backbone_folder(architecture), "", [])
        method.apply(model, model)
    assert not adapters(model)


def test_a_text_that_is_shorter_than_a_window_is_refused(decoder_folder, tmp_path):
    (tmp_path / "short.txt").write_text("the cat\n")
    task = CausalLM(decoder_folder(), LoRA(rank=4, input_rank=1, input_text=str(tmp_path / "short.txt")))
    with pytest.raises(
        InputError, match=r"^input_text: .*short.txt has 3 tokens, fewer than the 47 of a window; give a longer text$"
    ):
        task.configure_model()


def test_a_text_that_nothing_is_asked_of_is_not_read(decoder_folder):
    task = CausalLM(decoder_folder(), LoRA(rank=4, input_rank=0, input_text="nowhere"))
    task.configure_model()
    assert len(adapters(task.model)) > 0


def test_a_checkpoint_is_loaded_where_its_text_is_no_more(train_lm, corpus, tmp_path):
    task = train_lm(LoRA(rank=4, input_rank=0.5, input_text=corpus), file=tmp_path / "a.ckpt")
    (tmp_path / "corpus.txt").unlink()
    loaded = load(tmp_path / "a.ckpt")
    for ours, theirs in zip(adapters(task.model), adapters(loaded.model), strict=True):
        assert torch.equal(ours.right_basis, theirs.right_basis)
    with pytest.raises(InputError, match="input_text: there is no"):
        train_lm(LoRA(rank=4, input_rank=0.5, input_text=corpus))


@pytest.mark.parametrize("tokens", [None, [[1]], torch.tensor([[64]]), torch.tensor([[-1]]), torch.rand(2, 3)])
def test_tokens_of_a_damaged_checkpoint_are_refused(tokens):
    model = model_of("llama")
    method = LoRA(rank=4, input_rank=1, input_text="self")
    method.load_state_dict({"input_text": "self", "input_tokens": tokens})
    with pytest.raises(InputError, match="what the checkpoint says was read is no text of this backbone"):
        method.apply(model, model.base_model)


@pytest.mark.parametrize("text", ["random", "self", "corpus"])
def test_mending_takes_out_what_the_same_text_shows(decoder_folder, corpus, text):
    text = corpus if text == "corpus" else text
    backbone = Backbone(decoder_folder(), input_text=text)
    path = "model.layers.1.self_attn.q_proj"
    update = Update({path: Delta(Pair(torch.randn(32, 4), torch.randn(4, 32)))}, {}, backbone.name)
    mended = mend(update, "input_rank", 0.5, backbone).changes[path].dense(dtype=torch.float64)
    model = transformers.AutoModelForCausalLM.from_pretrained(decoder_folder())
    tokens = input_tokens(text, model.base_model, model, decoder_folder())
    if tokens is None:
        tokens = torch.randint(64, (8, 128), generator=torch.Generator().manual_seed(0))
    x = inputs(model.base_model, tokens)[path.removeprefix("model.")]
    sigma, v = torch.linalg.svd(x, full_matrices=False)[1:]
    held = sigma.square().cumsum(0) / sigma.square().sum()
    v = v[: int((held < 0.5).sum()) + 1].mT
    matrix = update.changes[path].dense(dtype=torch.float64)
    torch.testing.assert_close(mended, matrix - matrix @ v @ v.mT, atol=1e-4, rtol=0)
