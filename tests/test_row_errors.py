"""A row that can't be used is one line in every data module: its file, its line there, and what to do."""

import json
import re

import datasets
import pytest
from lit_spectral.datamodules import (
    GLUE,
    Commonsense,
    ConvAI2,
    Instructions,
    LabelledText,
    Math,
    PromptedText,
    ScienceQA,
    SQuAD,
    TextWindows,
)
from lit_spectral.datamodules.files import read_split
from lit_spectral.datamodules.sources import Source, name_row, source_of

from lit_spectral.errors import LONGEST, InputError, mistake
from lit_spectral.evaluation import local_data

PAIR = {"sentence1": "the cat", "sentence2": "a cat", "label": 1}
QUESTION = {"context": "the cat sat", "question": "who", "answers": {"text": ["cat"], "answer_start": [4]}}
SCIENCE = {"question": "Which flew?", "choices": ["the cat", "the bird"], "answer": 1}
TASK = {"instruction": "Is it? Answer format: true/false", "input": "", "output": "it is true", "answer": "true"}
TALK = {"personality": ["i flew ."], "utterances": [{"history": ["hello"], "candidates": ["no", "hi"]}]}
REPLY = {"personality": ["i flew ."], "history": ["hello"], "candidates": ["no", "hi"]}
FUNCTION = {"prompt": "def f():\n", "entry_point": "f", "canonical_solution": "", "test": ""}
LONG = "x" * 5000


def setup(module, stage="fit", **options):
    """What reads a folder by a data module, as a stage does."""

    def read(folder, tokenizer):
        module(str(folder), tokenizer=tokenizer, **options).setup(stage)

    return read


glue = setup(lambda path, **options: GLUE("mrpc", path, **options))
scores = setup(lambda path, **options: GLUE("stsb", path, **options))
labelled = setup(LabelledText, classes=["a", "b"], validation_fraction=0.3)
squad = setup(SQuAD, max_length=40, stride=6, max_query_length=12)
prompted = setup(PromptedText, prompt="{q}", answer="{a}", validation_rows=1)
held_out = {"validation_rows": 1}
maths = setup(lambda path, **options: Math("gsm8k", path, **options), **held_out)
short = {"max_new_tokens": 4}
math_test = setup(lambda path, **options: Math("gsm8k", path, **options), "test", **short)
commonsense_test = setup(lambda path, **options: Commonsense(path, sets=["boolq"], **options), "test", **short)
function_test = setup(lambda path, **options: Instructions(path, humaneval=path, **options), "test", **short)
alpaca_test = setup(
    lambda path, **options: Instructions(path, alpaca_eval=f"{path}/train.jsonl", **options), "test", **short
)
corpus = setup(TextWindows, "validate", max_length=4)

# From a name to the file, what reads it, a sound row, and what makes others of it that can't be used.
BROKEN = {
    "labels": (
        "train", glue, PAIR,
        [{"label": value} for value in (None, ["1"], {"a": 1}, 2, -1, 0.5, "yes", "", LONG, "1" * 5000, "1e400")],
    ),
    "texts": ("train", glue, PAIR, [{"sentence2": value} for value in (None, ["a"], {"b": LONG})]),
    "scores": ("train", scores, PAIR, [{"label": value} for value in (7.5, "high", None, -1e-9, "1e400")]),
    "labelled text": (
        "train", labelled, {"text": "the cat", "label": "a"},
        [{"label": value} for value in (None, " ", ["a"], LONG)] + [{"text": value} for value in (None, {"b": LONG})],
    ),
    "spans": (
        "train", squad, QUESTION,
        [{"context": ""}, {"question": " "}, {"context": None}, {"question": [LONG]}, {"answers": LONG}]
        + [{"context": "\u200b", "answers": {"text": [], "answer_start": []}}]
        + [{"answers": {"text": value, "answer_start": [4]}} for value in ("the cat", [None], [LONG], ["a", "b"])],
    ),
    "ids": ("validation", squad, QUESTION, [{"id": "0"}]),
    "science": (
        "train", setup(ScienceQA, **held_out), SCIENCE,
        [{"question": value} for value in (None, ["a"], "")]
        + [{"choices": value} for value in (None, LONG, [LONG])] + [{"answer": value} for value in (None, LONG, 2, -1)],
    ),
    "commonsense": ("train", setup(Commonsense, **held_out), TASK, [{"output": ""}, {"input": ["a"]}]),
    "commonsense test": ("boolq/test", commonsense_test, TASK, [{"answer": LONG}, {"answer": None}, {"input": None}]),
    "commonsense harness": (
        "boolq/test", lambda folder, _: local_data.commonsense("boolq", str(folder)), TASK,
        [{"answer": LONG}, {"instruction": None}],
    ),
    "science harness": (
        "test", lambda folder, _: local_data.scienceqa(str(folder)), SCIENCE, [{"answer": LONG}, {"question": None}],
    ),
    "conversations": (
        "train", setup(ConvAI2, **held_out), TALK,
        [{"personality": None}, {"personality": [LONG, 3, None]}, {"utterances": LONG}, {"utterances": [LONG]}],
    ),
    "replies": (
        "train", setup(ConvAI2, **held_out), REPLY,
        [{"history": None}, {"candidates": []}, {"candidates": [" "]}, {"personality": LONG}],
    ),
    "problems": ("train", maths, {"question": "1 + 1?", "answer": "#### 2"}, [{"question": None}, {"answer": [LONG]}]),
    "problem tests": ("test", math_test, {"question": "1 + 1?", "answer": "#### 2"}, [{"answer": "two"}]),
    "instructions": (
        "train", setup(Instructions, empty_answer="error", **held_out), TASK, [{"instruction": None}, {"output": ""}],
    ),
    "completions": (
        "train", setup(Instructions, empty_answer="error", **held_out),
        {"instruction": "a", "completions": [{"response": "b", "fine-grained_score": 1}]},
        [{"completions": LONG}, {"instruction": ["a"]}],
    ),
    "functions": (
        "test", function_test, FUNCTION, [{"test": None}, {"prompt": [LONG]}, {"task_id": "0"}],
    ),
    "alpaca": ("train", alpaca_test, TASK, [{"instruction": None}]),
    "prompts": ("train", prompted, {"q": "the cat", "a": "sat"}, [{"q": None}, {"a": ""}, {"a": {"b": LONG}}]),
    "a corpus": ("validation", corpus, {"text": "the cat"}, [{"text": None}, {"text": [LONG]}]),
}  # fmt: skip
CASES = [
    pytest.param(name, change, id=f"{name} {str(change)[:40]}") for name, row in BROKEN.items() for change in row[3]
]


def one_line(call, file, line=None):
    """What an error says, once it has been seen to be one line for a file and a line, with a remedy."""
    with pytest.raises(InputError) as raised:
        call()
    said = str(raised.value)
    assert mistake(raised.value) == said  # as it is, not cut to be one line
    assert len(said) <= LONGEST
    assert file in said
    assert line is None or f"line {line}" in re.findall(r"line \d+", said)
    assert re.search(r"; \w+", said), said
    return said


def fill(folder, name, sound, change):
    """JSON lines with blank ones among them, of which the fifth can't be used."""
    file = folder / f"{name}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"id": str(number), "task_id": str(number)} | sound for number in range(4)]
    rows[2] |= change
    first, second, third, fourth = (json.dumps(row) for row in rows)
    file.write_text(f"{first}\n\n{second}\n\n{third}\n{fourth}\n")
    return file


@pytest.mark.parametrize(("name", "change"), CASES)
def test_a_row_that_can_not_be_used_is_one_line_that_names_it(name, change, tmp_path, backbone_folder, decoder_folder):
    split, read, sound, _ = BROKEN[name]
    tokenizer = backbone_folder("bert") if read in (glue, scores, squad) else decoder_folder()
    for other in {"train", "validation", "test"} - {split}:
        fill(tmp_path, other, sound, {})
    fill(tmp_path, split, sound, {})
    read(tmp_path, tokenizer)  # the others can be used
    file = fill(tmp_path, split, sound, change)
    one_line(lambda: read(tmp_path, tokenizer), str(file), 5)


def test_rows_that_are_left_out_or_hold_several_keep_their_lines(tmp_path):
    fill(tmp_path, "train", SCIENCE, {"image": "1.png"})
    science = ScienceQA(str(tmp_path))
    assert len(science.rows("train")) == 3
    assert [name_row(science.source("train"), row)[-6:] for row in range(3)] == ["line 1", "line 3", "line 6"]
    fill(tmp_path, "train", TALK, {"utterances": 2 * TALK["utterances"]})
    talk = ConvAI2(str(tmp_path), validation_rows=1)
    found = [(split, len(talk.rows(split)), talk.source(split).numbers) for split in ("train", "validation")]
    assert [count for _, count, _ in found] == [len(numbers) for _, _, numbers in found]
    assert sorted(found[0][2] + found[1][2]) == [0, 1, 2, 2, 3]


def test_a_turn_of_parlai_is_named_by_its_line(tmp_path):
    file = tmp_path / "train_self_original.txt"
    file.write_text("1 your persona: i flew .\n\n2 hello\thi\n\n3 no tab\n")
    one_line(lambda: ConvAI2(str(tmp_path)).rows("train"), str(file), 5)


def test_rows_under_a_key_are_named_by_it(tmp_path):
    file = tmp_path / "personachat.json"
    file.write_text(json.dumps({"train": [TALK, TALK | {"personality": None}], "valid": [TALK]}))
    assert f"{file}, train, row 1: " in one_line(lambda: ConvAI2(str(file)).rows("train"), str(file))


def places(folder):
    """What errors call each row of a split, the folder left out."""
    source = source_of(str(folder), "train")
    count = len(read_split(str(folder), "train"))
    return [name_row(source, row).removeprefix(f"{folder}/") for row in range(count)]


@pytest.mark.parametrize(
    ("name", "content", "lines"),
    [
        ("train.jsonl", '\n{"q": 1}\n  \n{"q": "\u2028"}\n\x1c\n{"q": 3}', [2, 4, 6]),
        ("train.jsonl", '\ufeff\n{"q": 1}\r\n{"q": 2}\r\n', [2, 3]),
        ("train.json", '{"q": 1}\n\n{"q": 2}', [1, 3]),
        ("train.csv", '\ufeffq,a\n1,2\n\n \n3,"x\ny ""z"",\n\n"\n,\n5," 7"""\n6,7" disk\n8,9', [2, 5, 9, 10, 11, 12]),
        ("train.csv", 'q\n" "\n \t\n"\n\n"\n1\n', [2, 4, 7]),
        ("train.csv", '\nq\r\n\r\n1\r\n"2\r\n"\r\n3\r\n', [4, 5, 7]),
        ("train.csv", f'q,a\n{LONG * 40},1\n2,3\n', [2, 3]),
    ],
)  # fmt: skip
def test_lines_are_those_of_an_editor(name, content, lines, tmp_path):
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    assert places(tmp_path) == [f"{name}, line {line}" for line in lines]


@pytest.mark.parametrize(
    ("name", "form"), [("train.json", "[{}]"), ("train.jsonl", "[{}]"), ("train.json", "[\n{}\n]")]
)
def test_rows_of_a_list_are_counted(name, form, tmp_path):
    (tmp_path / name).write_text(form.format('{"q": 1},\n{"q": 2}'))
    assert places(tmp_path) == [f"{name}, row {row}" for row in range(2)]


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl", "json"])
def test_rows_of_several_files_are_named_by_their_own(suffix, tmp_path):
    names = [f"train-{part:05d}-of-00003.{suffix}" for part in range(3)]
    for part, name in enumerate(names):
        table, file = datasets.Dataset.from_dict({"q": ["a"] * (2 - part % 2)}), str(tmp_path / name)
        if suffix == "json":
            (tmp_path / name).write_text(json.dumps(table.to_list()))
        else:
            {"parquet": table.to_parquet, "csv": table.to_csv, "jsonl": table.to_json}[suffix](file)
    word, first = {"parquet": ("row", 0), "csv": ("line", 2), "jsonl": ("line", 1), "json": ("row", 0)}[suffix]
    expected = [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1)]
    assert places(tmp_path) == [f"{names[part]}, {word} {first + row}" for part, row in expected]


def test_rows_of_the_hub_are_counted():
    assert name_row(source_of("someone/something", "train"), 3) == "split train of someone/something, row 3"
    assert name_row(Source("x", numbers=[5, 7]), 1) == "x, row 7"


def of_kind(folder, name, rows):
    """Rows as a split in the format that the name's end says, and the file."""
    table, file = datasets.Dataset.from_list(rows), folder / name
    if name.endswith("json"):
        file.write_text(json.dumps(rows, indent=1))
    else:
        {"csv": table.to_csv, "parquet": table.to_parquet}[file.suffix[1:]](str(file))
    return file


@pytest.mark.parametrize(
    ("name", "place"), [("train.csv", "line 6"), ("train.parquet", "row 2"), ("train.json", "row 2")]
)
@pytest.mark.parametrize(("read", "label"), [(glue, 2), (glue, None), (scores, 7.5), (scores, float("nan"))])
def test_a_label_is_named_in_every_format(name, place, read, label, tmp_path, backbone_folder):
    rows = [PAIR | {"sentence1": "the\ncat"}, PAIR | {"sentence2": ' "a"\n'}, PAIR | {"label": label}, PAIR]
    file = of_kind(tmp_path, name, rows)
    assert f"{file}, {place}: " in one_line(lambda: read(tmp_path, backbone_folder("bert")), str(file))


@pytest.mark.parametrize("name", ["train.parquet", "train.json"])
@pytest.mark.parametrize("kind", ["spans", "science", "conversations", "problems", "prompts", "instructions"])
def test_a_row_of_what_has_no_lines_is_counted(kind, name, tmp_path, backbone_folder, decoder_folder):
    _, read, sound, changes = BROKEN[kind]
    rows = [{"id": str(number)} | sound | (changes[0] if number == 2 else {}) for number in range(4)]
    file = of_kind(tmp_path, name, rows)
    tokenizer = backbone_folder("bert") if read is squad else decoder_folder()
    assert f"{file}, row 2: " in one_line(lambda: read(tmp_path, tokenizer), str(file))
