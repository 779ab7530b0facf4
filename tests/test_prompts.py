"""Templates, what is scored and left out, and packing: the same losses as one example a row."""

import json
import logging
import shutil

import pytest
import torch
import transformers
from conftest import WORDS
from lit_spectral.datamodules import PromptedText
from lit_spectral.datamodules.packing import PackedRows, collate_packed, pack
from lit_spectral.datamodules.prompts import TEMPLATES, layout

from lit_spectral.errors import InputError
from lit_spectral.methods import LoRA
from lit_spectral.tasks import CausalLM
from lit_spectral.tasks.packing_check import check_packing

LENGTHS = torch.randint(1, 40, (500,), generator=torch.Generator().manual_seed(0)).tolist()


def test_alpaca_is_as_published():
    given, said = layout("alpaca", None)("Add.", "1 and 2", "3")
    assert given == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n### Response:"
    )
    assert said == "3"


@pytest.mark.parametrize("template", TEMPLATES)
def test_an_empty_input_leaves_no_trace(template):
    given, _ = layout(template, None)("Add {1}.", " ", "3")
    assert given == TEMPLATES[template][0].replace("{prompt}", "Add {1}.")


def test_llm_adapters_prompt_is_alpacas_but_for_white_space():
    pairs = [[" ".join(text.split()) for text in TEMPLATES[name]] for name in ("alpaca", "llm-adapters")]
    assert pairs[0] == pairs[1]


@pytest.fixture
def chatty(decoder_folder, tmp_path):
    """A folder of a tokenizer with a chat template that ends turns with its EOS; the template is changeable."""
    folder = shutil.copytree(decoder_folder(), tmp_path / "chatty")
    template = (
        "{% for m in messages %}[CLS] {{ m['role'] }} : {{ m['content'] }} [SEP] {% endfor %}"
        "{% if add_generation_prompt %}[CLS] assistant : {% endif %}"
    )

    def save(change=lambda text: text):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        opening, ending = tokenizer.bos_token, tokenizer.eos_token
        tokenizer.chat_template = change(template).replace("[CLS]", opening).replace("[SEP]", ending)
        tokenizer.save_pretrained(folder)
        return tokenizer

    return folder, save


def test_chat_gives_the_users_turn_and_says_the_assistants(chatty):
    tokenizer = chatty[1]()
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    given, said = layout("chat", tokenizer)("the cat", "sat", "on the mat")
    assert given == f"{bos} user : the cat\nsat {eos} {bos} assistant : "
    assert said == f"on the mat {eos} "


def test_chat_eos_gives_the_users_turn_and_says_the_answer_alone(chatty):
    tokenizer = chatty[1](lambda text: text.replace("[CLS] assistant : {% endif", "[CLS] assistant thinks {% endif"))
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    given, said = layout("chat-eos", tokenizer)("the cat", "sat", "on the mat")
    assert (given, said) == (f"{bos} user : the cat\nsat {eos} {bos} assistant thinks ", "on the mat")


def test_a_chat_template_whose_opening_is_no_beginning_of_the_answer_is_refused(chatty):
    tokenizer = chatty[1](lambda text: text.replace("[CLS] assistant : {% endif", "[CLS] assistant thinks {% endif"))
    with pytest.raises(InputError, match="opens an answer to be generated unlike one that is given"):
        layout("chat", tokenizer)("the cat", "", "sat")


ROWS = [{"q": f"the {who} {did}", "a": "on the mat"} for who in WORDS[1:4] for did in WORDS[4:11]]


@pytest.fixture
def prompted(tmp_path, decoder_folder):
    """PromptedText over 21 rows, or others, set up for training."""

    def make(rows=ROWS, bos=True, **options):
        file, text = tmp_path / "train.jsonl", "".join(json.dumps(row) + "\n" for row in rows)
        if not file.exists() or file.read_text() != text:
            file.write_text(text)
        options = {"validation_rows": 1, "batch_size": 2, "tokenizer": decoder_folder("llama", bos)} | options
        data = PromptedText(str(tmp_path), "{q}\n", "{a}", **options)
        data.setup("fit")
        return data

    return make


def test_chat_rows_have_one_bos_a_turn_and_score_the_answer_and_its_end(prompted, chatty):
    tokenizer = chatty[1]()
    row = prompted(template="chat", tokenizer=str(chatty[0])).splits["train"][0]
    assert row["input_ids"].count(tokenizer.bos_token_id) == 2
    scored = [label for label in row["labels"] if label != -100]
    assert scored == tokenizer("on the mat", add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]


def test_chat_eos_rows_score_the_answer_and_eos_whatever_ends_a_turn(prompted, chatty):
    tokenizer = chatty[1](lambda text: text.replace("[SEP]", "on"))
    row = prompted(template="chat-eos", tokenizer=str(chatty[0])).splits["train"][0]
    scored = [label for label in row["labels"] if label != -100]
    assert row["input_ids"].count(tokenizer.bos_token_id) == 2
    assert scored == [*tokenizer("on the mat", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def test_the_loss_is_on_everything_by_option(prompted):
    row = prompted(loss_on="all").splits["train"][0]
    assert row["labels"] == row["input_ids"]


def test_rows_left_out_are_counted(prompted, caplog):
    with caplog.at_level(logging.WARNING):
        data = prompted([*ROWS, ROWS[0] | {"a": ""}], empty_answer="skip")
    assert len(data.splits["train"]) + len(data.splits["val"]) == 21
    assert caplog.text.count("train: 1 of 22 rows left out") == 1  # though both splits are read from `train`


def test_rows_too_long_are_left_out_by_option(prompted):
    data = prompted([*ROWS, ROWS[0] | {"q": "the cat " * 20}], too_long="skip", max_length=30)
    assert len(data.splits["train"]) + len(data.splits["val"]) == 21


def test_rows_cut_are_counted(prompted, caplog):
    with caplog.at_level(logging.WARNING):
        prompted([*ROWS, ROWS[0] | {"q": "the cat " * 20}], max_length=30)
    assert "train: 1 of 22 rows cut to 30 tokens" in caplog.text


def test_tokens_are_kept_by_content_and_settings(prompted):
    def file(**options):
        return prompted(**options).splits["train"].cache_files[0]["filename"]

    first = file()
    assert file() == first
    assert len({first, file(template="alpaca"), file(max_length=20), file(loss_on="all"), file(bos=False)}) == 5


def test_packs_hold_every_example_once_and_none_overflows():
    packs = pack(LENGTHS, 64)
    assert sorted(index for members in packs for index in members) == list(range(500))
    assert max(sum(LENGTHS[index] for index in members) for members in packs) <= 64


def test_packs_are_full():
    assert sum(LENGTHS) / (64 * len(pack(LENGTHS, 64))) > 0.99


def test_packs_depend_on_the_seed_alone():
    assert pack(LENGTHS, 64) == pack(LENGTHS, 64)
    assert pack(LENGTHS, 64) != pack(LENGTHS, 64, seed=1)


@pytest.fixture(params=[("llama", "sdpa"), ("llama", "eager"), ("gpt2", "sdpa"), ("gpt2", "eager")])
def model(request, decoder_folder):
    """A decoder with a trained-looking adapter, in float32 and eval mode."""
    task = CausalLM(decoder_folder(request.param[0]), LoRA(rank=2))
    task.configure_model()
    task.model.set_attn_implementation(request.param[1])
    with torch.no_grad():
        for parameter in task.model.parameters():
            if parameter.ndim > 1:  # random models hardly attend; these do
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(2))
    return task.eval()


def token_losses(task, batch):
    """Losses of the scored tokens in order, by a forward of the whole batch."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    with torch.no_grad():
        logits = task.model(**inputs, use_cache=False).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.mT, batch["labels"][:, 1:], reduction="none")
    return [row[labels != -100] for row, labels in zip(losses, batch["labels"][:, 1:], strict=True)]


@pytest.mark.parametrize("bos", [True, False])
def test_packed_every_token_has_the_loss_that_it_has_alone(model, prompted, bos):
    lengths = [1 + i % 3 for i in range(21)]
    words = [" ".join(WORDS[(i + k) % len(WORDS)] for k in range(length)) for i, length in enumerate(lengths)]
    data = prompted([{"q": text, "a": "sat"} for text in words], bos, loss_on="all", max_length=48)
    rows = data.splits["train"]
    lengths = [len(ids) for ids in rows["input_ids"]]
    packed = PackedRows(rows, lengths, 48, seed=0)
    losses = token_losses(model, collate_packed([packed[i] for i in range(len(packed))], data.tokenizer.pad_token_id))
    alone = token_losses(model, data.collate([rows[i] for i in range(len(rows))]))
    expected = [torch.cat([alone[index] for index in members]) for members in packed.packs]
    assert len(packed) < len(rows) / 1.5
    assert max(float((a - b).abs().max()) for a, b in zip(losses, expected, strict=True)) < 1e-5


def test_a_packed_batch_scores_as_many_tokens_as_its_examples(prompted, model):
    data = prompted(packing=True, max_length=48)
    examples = data.splits["train"]
    counts = [int(model.summed_loss(batch)[1]) for batch in data.train_dataloader()]
    assert sum(counts) == sum(label != -100 for labels in examples["labels"] for label in labels)


def test_packed_rows_come_in_an_order_of_seed_and_epoch(prompted):
    def order(epoch=0, **options):
        loader = prompted(packing=True, max_length=48, **options).train_dataloader()
        loader.sampler.set_epoch(epoch)
        return [batch["input_ids"].tolist() for batch in loader]

    assert order() == order()
    assert order(epoch=1) != order()
    assert sorted(len(batch) for batch in order(epoch=1)) == sorted(len(batch) for batch in order())


def test_only_training_rows_are_packed(prompted):
    data = prompted(packing=True, max_length=48)
    assert "position_ids" not in next(iter(data.val_dataloader()[0]))


def test_backbones_that_keep_examples_apart_may_be_packed_for(model):
    model.train()
    check_packing(model.model)
    assert model.model.training


@pytest.mark.parametrize("blind_to", ["position_ids", "everything"])
def test_backbones_that_do_not_are_refused(decoder_folder, blind_to):
    task = CausalLM(decoder_folder("llama"), LoRA(rank=2))
    task.configure_model()
    plain = task.model.forward

    def forward(input_ids, use_cache, **others):
        return plain(input_ids, use_cache=use_cache)

    def without(input_ids, use_cache):
        return plain(input_ids, use_cache=use_cache)

    task.model.forward = forward if blind_to == "position_ids" else without
    with pytest.raises(InputError, match=r"data.packing: this backbone(.s tokens see| takes no positions)"):
        check_packing(task.model)
