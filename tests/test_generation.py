"""Batched generation, and test sets answered by it: commonsense and mathematics."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from conftest import WORDS
from lit_spectral.datamodules import Commonsense, Math
from lit_spectral.datamodules.commonsense import KEYWORDS

from lit_spectral.errors import InputError
from lit_spectral.generation import _continuation, _stop_at, generate, pad_left
from lit_spectral.methods import LoRA
from lit_spectral.tasks import CausalLM

PROMPTS = ["the cat sat", "the dog", "then the bird flew over the hill and", "mat"]


@pytest.fixture(params=["llama", "gpt2"])
def decoder(request, decoder_folder):
    """A decoder whose next token depends on what it read, with its tokenizer."""
    folder = decoder_folder(request.param)
    task = CausalLM(folder, LoRA(rank=2))
    task.configure_model()
    with torch.no_grad():
        for number, parameter in enumerate(task.model.parameters()):
            if parameter.ndim > 1:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(number))
    return task.model.eval(), transformers.AutoTokenizer.from_pretrained(folder)


def test_padding_goes_to_the_left():
    batch = pad_left([[5, 6, 7], [8]], 0)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [0, 0, 8]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_greedy_answers_are_the_likeliest_tokens_whatever_the_batch(decoder, batch_size):
    model, tokenizer = decoder
    expected = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt)["input_ids"]
        start = len(ids)
        while len(ids) < start + 6 and (len(ids) == start or ids[-1] != tokenizer.eos_token_id):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        before = tokenizer.decode(ids[:start], skip_special_tokens=True)
        expected.append(tokenizer.decode(ids, skip_special_tokens=True).removeprefix(before))
    assert len(set(expected)) > 1
    assert generate(model, tokenizer, PROMPTS, max_new_tokens=6, batch_size=batch_size) == expected


def test_the_backbones_own_generation_settings_do_not_count(decoder):
    model, tokenizer = decoder
    plain = generate(model, tokenizer, PROMPTS, max_new_tokens=6)
    model.generation_config.do_sample, model.generation_config.repetition_penalty = True, 5.0
    assert generate(model, tokenizer, PROMPTS, max_new_tokens=6) == plain


def test_what_is_sampled_follows_the_seed(decoder):
    def sampled(seed):
        torch.manual_seed(seed)
        return generate(*decoder, PROMPTS, max_new_tokens=6, settings={"do_sample": True})

    assert sampled(0) == sampled(0) != sampled(1)


def test_the_mode_is_as_before(decoder):
    decoder[0].train()
    generate(*decoder, PROMPTS[:1], max_new_tokens=1)
    assert decoder[0].training


def test_a_setting_that_there_is_not_is_named(decoder):
    with pytest.raises(InputError, match="there is no beams among transformers' generation settings"):
        generate(*decoder, PROMPTS, max_new_tokens=1, settings={"beams": 4})


def write(path, rows):
    path.parent.mkdir(exist_ok=True)
    text = json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 3}, "leave out max_new_tokens"),
        ({"num_return_sequences": 2}, "leave out num_return_sequences"),
        ({"x": 1}, "there is no x"),
    ],
)
def test_settings_that_are_said_elsewhere_are_refused(decoder, settings, message):
    model, tokenizer = decoder
    with pytest.raises(InputError, match=message):
        generate(model, tokenizer, PROMPTS, settings=settings)


def test_it_stops_at_texts(decoder):
    model, tokenizer = decoder
    prompt, whole = max(
        zip(PROMPTS, generate(model, tokenizer, PROMPTS, 24), strict=True), key=lambda pair: len(pair[1].split())
    )
    words = whole.split()
    stop = max(words[: len(words) // 2], key=len)
    (found,) = generate(model, tokenizer, [prompt], 24, settings={"stop_strings": stop})
    assert whole.startswith(found)
    assert stop in found
    assert len(found) < len(whole)


def test_rows_stop_by_what_they_hold_wherever_they_move(decoder):
    # As beams do, from step to step.
    tokenizer = decoder[1]
    going, stop = (tokenizer.convert_tokens_to_ids(letter) for letter in ("c", "d"))
    check = _stop_at(["d"], tokenizer, start=1)
    assert check(torch.tensor([[stop, going], [stop, stop]]), None).tolist() == [False, True]
    assert check(torch.tensor([[stop, stop], [stop, going]]), None).tolist() == [True, False]


def test_blanks_at_the_start_of_an_answer_are_kept():
    # As in Llama 2's tokenizer, whose decoder takes a blank off the beginning of a text.
    import tokenizers

    vocabulary = {"<s>": 0, "</s>": 1, "<unk>": 2, "▁": 3, "a": 4, "▁▁": 5, ":": 6}
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    replace, strip = tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.Strip(" ", 1, 0)
    core.decoder = tokenizers.decoders.Sequence([replace, tokenizers.decoders.Fuse(), strip])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")
    assert _continuation(tokenizer, [0, 6, 5, 5, 4, 1], 2) == "    a"


@pytest.fixture
def commonsense(tmp_path):
    """A folder in LLM-Adapters' form: a mixture to train on, and two of the sets."""
    rows = [
        {"instruction": f"the {WORDS[i % 5]} sat", "input": "", "output": "the answer is true", "answer": "true"}
        for i in range(20)
    ]
    write(tmp_path / "train.json", rows)
    for name in ("boolq", "piqa"):
        write(tmp_path / name / "test.json", [row | {"answer": KEYWORDS[name][0]} for row in rows[:7]])
    return str(tmp_path)


@pytest.fixture
def mathematics(tmp_path):
    """GSM8K in `gsm8k`, MetaMathQA in `metamath` and MATH in `math`, each with train and test."""
    gsm8k = {"question": "How many cats?", "answer": "2+3=<<2+3=5>>5 cats.\n#### 1,005"}
    metamath = {"query": "How many dogs?", "response": "There are 4.\nThe answer is: 4", "type": "x"}
    competition = {"problem": "What is $x$?", "solution": r"It is $\boxed{\frac{1}{2}}$.", "level": "1"}
    for name, row in (("gsm8k", gsm8k), ("metamath", metamath), ("math", competition)):
        for split in ("train", "test"):
            write(tmp_path / name / f"{split}.jsonl", [row] * 5)
    return tmp_path


def decoded(data, rows):
    return [data.tokenizer.decode(row["input_ids"], skip_special_tokens=True) for row in rows]


def test_commonsense_trains_on_the_mixture_without_the_rows_held_out(commonsense, decoder_folder):
    data = Commonsense(commonsense, validation_rows=4, tokenizer=decoder_folder())
    data.setup("fit")
    assert (len(data.splits["train"]), len(data.splits["val"])) == (16, 4)


def test_a_set_that_is_not_there_is_named(commonsense, decoder_folder):
    data = Commonsense(commonsense, tokenizer=decoder_folder(), max_new_tokens=4)
    with pytest.raises(InputError, match=r"there is no folder social_i_qa .* or leave the set out of --data.sets"):
        data.setup("test")


def test_a_set_that_does_not_exist_is_named():
    with pytest.raises(InputError, match="there is no set siqa; there are boolq, piqa, social_i_qa"):
        Commonsense("x", sets=["siqa"])


def test_prompts_are_those_of_training_without_the_answer(commonsense, decoder_folder):
    options = {"sets": ["boolq"], "validation_rows": 4, "tokenizer": decoder_folder(), "max_new_tokens": 4}
    data = Commonsense(commonsense, template="plain", max_length=40, **options)
    data.setup("fit")
    data.setup("test")
    prompts = {tuple(row["input_ids"]) for row in data.splits["boolq"]}
    trained = {
        tuple(token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label == -100)
        for row in [*data.splits["train"], *data.splits["val"]]
    }
    assert prompts == trained


def test_a_prompt_leaves_room_for_the_answer(commonsense, decoder_folder):
    data = Commonsense(commonsense, sets=["boolq"], max_new_tokens=40, tokenizer=decoder_folder())
    data.setup("test")
    assert {len(row["input_ids"]) for row in data.splits["boolq"]} == {8}  # of the 48 that the model reads


def test_no_room_for_a_prompt_is_an_error(commonsense, decoder_folder):
    data = Commonsense(commonsense, sets=["boolq"], max_new_tokens=47, tokenizer=decoder_folder())
    with pytest.raises(InputError, match="47 leave no room for a prompt in the 48 tokens"):
        data.setup("test")


@pytest.mark.parametrize(
    ("name", "reasoning", "output", "answer"),
    [
        ("gsm8k", True, "2+3=5 cats.\n#### 1,005", "1,005"),
        ("gsm8k", False, "1,005", "1,005"),
        ("metamath", True, "There are 4.\nThe answer is: 4", "4"),
        ("metamath", False, "4", "4"),
        ("math", True, r"It is $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        ("math", False, r"\frac{1}{2}", r"\frac{1}{2}"),
    ],
)
def test_solutions_are_learned_whole_or_their_answers_alone(mathematics, name, reasoning, output, answer):
    row = Math(name, str(mathematics / name), reasoning=reasoning).rows("train")[0]
    assert (row["output"], row["answer"]) == (output, answer)


def test_mathematics_is_tested_on_the_sets_that_are_given(mathematics):
    folders = {name: str(mathematics / name) for name in ("gsm8k", "math")}
    assert Math("metamath", str(mathematics / "metamath"), **folders).test_sets == ["gsm8k", "math"]
    assert Math("gsm8k", folders["gsm8k"]).tests == {"gsm8k": folders["gsm8k"]}


def test_strict_answers_need_their_mark(mathematics):
    data = Math("metamath", str(mathematics / "metamath"), gsm8k=str(mathematics / "gsm8k"), strict=True)
    strict, usual = data.scorers["gsm8k"], Math("gsm8k", data.tests["gsm8k"]).scorers["gsm8k"]
    assert [score("so it is 5", "5") for score in (strict, usual)] == [False, True]
    assert strict("The answer is: 5", "5")


def test_answers_without_reasoning_can_not_be_strict():
    with pytest.raises(InputError, match="answers without reasoning have no mark"):
        Math("gsm8k", reasoning=False, strict=True)


def test_a_test_solution_without_an_answer_is_named(mathematics):
    write(mathematics / "gsm8k" / "test.jsonl", [{"question": "How many?", "answer": "Five."}])
    with pytest.raises(InputError, match="line 1: its solution holds no final answer"):
        Math("gsm8k", str(mathematics / "gsm8k")).test_rows("gsm8k")


def test_sets_are_answered_scored_and_written(command, commonsense, monkeypatch):
    # Half of the answers are right: those of even rows.
    monkeypatch.setattr(
        "lit_spectral.tasks.causal_lm.continue_batch",
        lambda model, tokenizer, batch, *rest: [
            f"it is {'true' if row % 2 == 0 else 'solution2'}" for row in batch["row"]
        ],
    )
    flags = [f"--data.path={commonsense}", "--data.sets=[boolq,piqa]", "--data.batch_size=3", "--data.max_new_tokens=4"]
    done = command("test", "--data=Commonsense", *flags)
    metrics = {name: float(value) for name, value in done.trainer.callback_metrics.items()}
    assert metrics == pytest.approx({"boolq/accuracy": 4 / 7, "piqa/accuracy": 0, "average/accuracy": 2 / 7})
    with open(f"{done.trainer.log_dir}/generations/boolq.jsonl", encoding="utf-8") as file:
        written = [json.loads(line) for line in file]
    assert [line["row"] for line in written] == list(range(7))
    assert written[1] | {"prompt": ""} == {
        "row": 1, "prompt": "", "gold": "true", "text": "it is solution2", "correct": False,
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_processes_together_answer_every_row_once(strategy, command, commonsense, decoder_folder, tmp_path):
    flags = ["--data=Commonsense", f"--data.path={commonsense}", "--data.sets=[boolq]", "--data.max_new_tokens=3"]
    model = ["--config=experiment.yaml", f"--model.backbone={decoder_folder()}"]
    both = [f"--trainer.strategy={strategy}", "--trainer.devices=2", "--data.batch_size=2"]
    subprocess.run(
        [sys.executable, "-m", "lit_spectral", "test", *model, *flags, *both],
        cwd=tmp_path, check=True, timeout=240, env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True,
    )  # fmt: skip
    together = (tmp_path / "logs/x/version_0/generations/boolq.jsonl").read_text()
    alone = command("test", *flags)
    assert together == Path(alone.trainer.log_dir, "generations/boolq.jsonl").read_text(encoding="utf-8")
    assert together.count("\n") == 7


@pytest.mark.parametrize("name", ["gsm8k", "math"])
def test_mathematics_is_trained_and_tested_through_the_command_line(command, mathematics, name):
    flags = ["--data=Math", f"--data.train_on={name}", f"--data.path={mathematics / name}", "--data.max_new_tokens=3"]
    command("fit", *flags, "--data.validation_rows=2", "--data.packing=true")
    done = command("test", *flags, "--data.limit=3")
    assert set(done.trainer.callback_metrics) == {f"{name}/accuracy"}


@pytest.mark.parametrize("peft_type", ["LORA", "PROMPT_TUNING"])
def test_methods_of_peft_answer_too(command, commonsense, peft_type):
    config = {"peft_type": peft_type} | ({"r": 2} if peft_type == "LORA" else {"num_virtual_tokens": 3})
    method = ["--model.method=Peft", f"--model.method.config={json.dumps(config)}"]
    flags = ["--data=Commonsense", f"--data.path={commonsense}", "--data.sets=[boolq]", "--data.validation_rows=2"]
    flags += ["--data.max_new_tokens=2", "--data.limit=2"]
    path = command("fit", *method, *flags, "--trainer.max_steps=1").trainer.checkpoint_callback.best_model_path
    done = command("test", *method, *flags, f"--ckpt_path={path}")
    assert set(done.trainer.callback_metrics) == {"boolq/accuracy"}


def test_predict_gives_the_answers_in_the_order_of_rows(command, commonsense):
    flags = [f"--data.path={commonsense}", "--data.sets=[boolq]", "--data.batch_size=4", "--data.max_new_tokens=2"]
    done = command("predict", "--data=Commonsense", *flags)
    assert [len(batch) for batch in done.trainer.predict_loop.predictions] == [4, 3]
