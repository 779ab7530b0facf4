"""Text is read as text, in every format and wherever a column is used as text; numbers where numbers are wanted."""

import datetime
import decimal
import json
import shutil

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import transformers
from lit_spectral.datamodules import Commonsense, Instructions, Math, PromptedText, ScienceQA, SQuAD
from lit_spectral.datamodules.columns import as_number, as_text
from lit_spectral.datamodules.corpora import read_passages
from lit_spectral.datamodules.files import read_rows, read_split
from lit_spectral.datamodules.sources import Source

from lit_spectral.errors import InputError
from lit_spectral.evaluation import local_data
from lit_spectral.scoring import humaneval

TEXTS = [
    *(
        "003",
        "true",
        "False",
        "1e5",
        "1.0",
        "1.10",
        "+5",
        "0x1F",
        "NA",
        "None",
        "null",
        "nan",
        "-",
        " blanks ",
        "\ttab",
    ),
    *(
        "2024-01-05",
        "12:30",
        "2024-01-05T12:30:00Z",
        "123456789012345678901234567890",
        "1,000",
        '"quoted"',
        "a\nb",
        "é",
    ),
    *("[1, 2]", '{"a": 1}', "", "\u2028"),
]


def write(folder, name, texts):
    """A file with the texts as a column `text`."""
    import csv

    file = folder / name
    rows = [{"text": text, "id": "x"} for text in texts]
    if name.endswith("csv"):
        with file.open("w", newline="", encoding="utf-8-sig" if "bom" in name else "utf-8") as opened:
            writer = csv.DictWriter(
                opened, ["text", "id"], quoting=csv.QUOTE_ALL if "quoted" in name else csv.QUOTE_MINIMAL
            )
            writer.writeheader()
            writer.writerows(rows)
    elif name.endswith("parquet"):
        datasets.Dataset.from_list(rows).to_parquet(str(file))
    elif name.startswith("list"):
        opening = "\ufeff" if "bom" in name else ""
        file.write_text(opening + json.dumps(rows, indent=1 if "pretty" in name else None, ensure_ascii=False), "utf-8")
    else:
        file.write_text("".join(json.dumps(row) + "\n\n" for row in rows), "utf-8-sig" if "bom" in name else "utf-8")
    return str(file)


FILES = [
    *("x.csv", "quoted.csv", "bom.csv", "x.jsonl", "lines.json", "bom.jsonl", "list.json", "list-pretty.json"),
    *("list-bom.json", "list.jsonl", "x.parquet"),
]


@pytest.mark.parametrize("name", FILES)
def test_a_text_is_what_the_file_spells(name, tmp_path):
    rows = read_rows(write(tmp_path, name, TEXTS))
    assert as_text(rows, ["text"], Source(name))["text"][:] == TEXTS


@pytest.mark.parametrize("text", ["2024-01-05", "003", "true", "NA"])
@pytest.mark.parametrize("name", FILES)
def test_a_column_of_nothing_else_is_too(name, text, tmp_path):
    rows = read_rows(write(tmp_path, name, [text] * 3))
    assert as_text(rows, ["text"], Source(name))["text"][:] == [text] * 3


LITERALS = [
    "3",
    "3.0",
    "1.10",
    "1E5",
    "1e400",
    "-0",
    "true",
    "false",
    "123456789012345678901234567890",
    "0.1000000000000001",
]


@pytest.mark.parametrize("form", ["{}\n", "[{}]"])
def test_literals_of_json_are_written_as_they_are_spelled(form, tmp_path):
    rows = [f'{{"text": {literal}}}' for literal in [*LITERALS, '"word"']]
    (tmp_path / "x.json").write_text(form.format(("\n" if form[0] == "{" else ",").join(rows)))
    assert read_rows(str(tmp_path / "x.json"))["text"][:] == [*LITERALS, "word"]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_a_field_of_an_object_is_text_as_a_column_is(tmp_path, suffix, decoder_folder):
    rows = [{"id": i, "extra": {"q": "the cat", "a": "sat"}} for i in range(3)]
    file = tmp_path / f"train.{suffix}"
    if suffix == "parquet":
        datasets.Dataset.from_list(rows).to_parquet(str(file))
    else:
        text = json.dumps(rows) if suffix == "json" else "\n".join(map(json.dumps, rows))
        file.write_text(text)
    data = PromptedText(str(tmp_path), "{extra.q}", "{extra.a}", tokenizer=decoder_folder(), validation_rows=1)
    data.setup("fit")
    read = [data.tokenizer.decode(row["input_ids"], skip_special_tokens=True) for row in data.splits["train"]]
    assert read == ["the cat sat"] * 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"extra": {"q": "a", "a": None}}, r"line 1: extra.a is None, not text"),
        ({"extra": {"q": "a"}}, r"(no column|line 1: ).*extra.a"),
        ({"extra": "a"}, "no column"),
    ],
)
def test_a_field_that_is_not_there_is_named(tmp_path, row, message, decoder_folder):
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    data = PromptedText(str(tmp_path), "{extra.q}", "{extra.a}", tokenizer=decoder_folder(), validation_rows=1)
    with pytest.raises(InputError, match=message):
        data.setup("fit")


def test_texts_within_lists_and_objects_are_texts_too(tmp_path):
    row = '{"a": ["2024-01-05", 1.10, true, null], "b": {"c": 003.5, "d": "003"}}'.replace("003.5", "3.50")
    (tmp_path / "x.jsonl").write_text(row + '\n{"a": null, "b": {"e": []}}\n')
    assert list(read_rows(str(tmp_path / "x.jsonl"))) == [
        {"a": ["2024-01-05", "1.10", "true", None], "b": {"c": "3.50", "d": "003"}},
        {"a": None, "b": {"e": []}},
    ]


@pytest.mark.parametrize(("content", "texts"), [('["003", "é"]', ["003", "é"]), ('{\n "text": "003"\n}', ["003"])])
def test_a_list_of_texts_and_one_object_are_rows(content, texts, tmp_path):
    (tmp_path / "x.json").write_text(content)
    assert read_rows(str(tmp_path / "x.json"))["text"][:] == texts


def test_columns_may_come_late_and_be_of_several_kinds(tmp_path):
    rows = ['{"text": "a"}'] * 3000 + ['{"text": "b", "more": ["c"]}', '{"text": ["d"], "more": "2024-01-05"}']
    (tmp_path / "x.jsonl").write_text("\n".join(rows))
    found = read_rows(str(tmp_path / "x.jsonl"))
    assert found[2999] == {"text": "a", "more": None}
    assert found[3001] == {"text": ["d"], "more": "2024-01-05"}
    with pytest.raises(InputError, match=r"x, row 3001: text is \['d'\], not text; write it as text"):
        as_text(found, ["text"], Source("x"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", '{"a": 1}\n\n{"a": 1, "a": 2}\n', r"x.jsonl, line 3 can't be read: an object has 'a' twice"),
        ("x.jsonl", '{"a": 1}\n[1]\n', r"x.jsonl, line 2 can't be read: it is no object"),
        ("x.jsonl", '{"a": 1}\n{"a": 1}, {"a": 2}\n', r"x.jsonl, line 2 can't be read: Extra data"),
        ("x.jsonl", '{"a": [1\n, 2]}\n', r"x.jsonl, line 1 can't be read: Expecting"),
        ("x.jsonl", '{"a": 1}\n{"a": "\\ud83d"}\n', r"x.jsonl, line 2 can't be read: it holds half a character"),
        ("x.json", '[{"a": 1}, 3]', r"x.json, row 1 can't be read: it is no object"),
        ("x.json", '[\n{"a": 1},\n{"a": 01}]', r"x.json, line 3 can't be read: Expecting"),
        ("x.json", "[]", "x.json is empty"),
        ("x.jsonl", "\n\n", "x.jsonl is empty"),
        (
            "x.csv",
            "q,a\nHello, world,3\n",
            "x.csv, line 2 can't be read: it has 3 fields, and the header 2; put quotes",
        ),
        (
            "x.csv",
            "q,a\nHello,3\nHello, world,3\n",
            "x.csv, line 3 can't be read: it has 3 fields, and the header 2; put",
        ),
        ("x.csv", 'q,a\nHello,"3\n', "x.csv, line 2 can't be read: a quote opens .* never closes; mend"),
    ],
)
def test_a_file_that_can_not_be_read_is_one_line(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message) as raised:
        read_rows(str(tmp_path / name))
    assert "\n" not in str(raised.value)


def test_parts_with_other_columns_are_named(tmp_path):
    (tmp_path / "train-00000-of-00002.csv").write_text("q,a\n1,2\n")
    (tmp_path / "train-00001-of-00002.csv").write_text("q,b\n1,2\n")
    with pytest.raises(InputError, match=r"train-00001-of-00002.csv can't be read: its columns are others than those"):
        read_split(str(tmp_path), "train")


def table(folder, **columns):
    pq.write_table(pa.table(columns), folder / "train.parquet")
    return read_split(str(folder), "train")


def test_typed_columns_are_written_as_text(tmp_path):
    columns = {
        "whole": pa.array([7, -1]),
        "large": pa.array([2**64 - 1, 0], pa.uint64()),
        "real": pa.array([1.0, 1e-7]),
        "single": pa.array([0.1, 3.0], pa.float32()),
        "truth": pa.array([True, False]),
        "money": pa.array([decimal.Decimal("1.10"), decimal.Decimal("100")], pa.decimal128(5, 2)),
        "long": pa.array(["003", "NA"], pa.large_string()),
        "category": pa.array(["b", "a"]).dictionary_encode(),
    }
    found = as_text(table(tmp_path, **columns), list(columns), Source("x"))
    assert found.to_dict() == {
        "whole": ["7", "-1"],
        "large": ["18446744073709551615", "0"],
        "real": ["1.0", "1e-07"],
        "single": ["0.1", "3.0"],
        "truth": ["true", "false"],
        "money": ["1.10", "100.00"],
        "long": ["003", "NA"],
        "category": ["b", "a"],
    }


def test_a_class_is_written_by_its_name(tmp_path):
    features = datasets.Features({"kind": datasets.ClassLabel(names=["cat", "dog"])})
    datasets.Dataset.from_dict({"kind": [1, 0]}, features=features).to_parquet(tmp_path / "train.parquet")
    assert as_text(read_split(str(tmp_path), "train"), ["kind"], Source("x"))["kind"][:] == ["dog", "cat"]


NO_TEXT = {
    "date": ([datetime.date(2024, 1, 5)], r"datetime.date\(2024, 1, 5\), not text; write it as text"),
    "moment": ([datetime.datetime(2024, 1, 5)], r"datetime.datetime\(2024, 1, 5, 0, 0\), not text; write it as text"),
    "time": ([datetime.time(12, 30)], r"datetime.time\(12, 30\), not text"),
    "list": ([["a"]], r"\['a'\], not text"),
    "object": ([{"b": 1}], r"\{'b': 1\}, not text"),
    "bytes": ([b"a"], "b'a', not text"),
    "infinite": ([float("inf")], "inf, not text"),
    "nothing": (pa.nulls(1), "None, not text; mend the row or leave it out"),
    "no number": ([float("nan")], "None, not text; mend the row or leave it out"),
}


@pytest.mark.parametrize("kind", NO_TEXT)
def test_what_has_no_text_is_named(kind, tmp_path):
    values, message = NO_TEXT[kind]
    with pytest.raises(InputError, match=f"x, row 0: q is {message}"):
        as_text(table(tmp_path, q=values), ["q"], Source("x"))


@pytest.mark.parametrize(
    ("value", "number"),
    [("3.8", 3.8), (" 4 ", 4), ("-1e2", -100), (".5", 0.5), (3, 3), (2.5, 2.5)]
    + [(value, None) for value in ("", "nan", "inf", "1e400", "1_0", "0x1", "x", True, None, float("nan"))],
)
def test_numbers_are_what_is_spelled_so(value, number):
    assert as_number(value) == number


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_prompts_and_answers_hold_what_the_file_spells(suffix, tmp_path, decoder_folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(shutil.copytree(decoder_folder(), tmp_path / "decoder"))
    tokenizer.add_tokens(["003", "true", "1.10", "3", "True", "1.1"])
    tokenizer.save_pretrained(tmp_path / "decoder")
    content = {"csv": "q,n,a\n003,1.10,true\n", "jsonl": '{"q": "003", "n": 1.10, "a": true}\n'}[suffix]
    for split in ("train", "val"):
        (tmp_path / f"{split}.{suffix}").write_text(content)
    data = PromptedText(str(tmp_path), "{q} {n} ", "{a}", tokenizer=str(tmp_path / "decoder"))
    data.setup("fit")
    (row,) = data.splits["train"]["input_ids"]
    assert tokenizer.decode(row, skip_special_tokens=True).split() == ["003", "1.10", "true"]


def test_a_date_that_is_one_is_refused_by_prompts(tmp_path, decoder_folder):
    table(tmp_path, q=["a"], day=pa.array([datetime.date(2024, 1, 5)]))
    data = PromptedText(str(tmp_path), "{q} {day}", "{q}", validation_rows=1, tokenizer=decoder_folder())
    with pytest.raises(InputError, match=r"train.parquet, row 0: day is datetime.date\(2024, 1, 5\), not text"):
        data.setup("fit")


def test_gold_answers_are_text_in_csv(tmp_path, decoder_folder):
    (tmp_path / "boolq").mkdir()
    (tmp_path / "boolq" / "test.csv").write_text("instruction,input,output,answer\nthe cat,,the answer is true,true\n")
    data = Commonsense(str(tmp_path), sets=["boolq"], tokenizer=decoder_folder(), max_new_tokens=4)
    data.setup("test")
    assert data.splits["boolq"]["gold"][:] == ["true"]


def test_problems_and_solutions_are_text_in_csv(tmp_path):
    (tmp_path / "test.csv").write_text("question,answer\n003,#### 1e5\n")
    row = Math("gsm8k", str(tmp_path)).test_rows("gsm8k")[0]
    assert (row["instruction"], row["answer"]) == ("003", "1e5")


def test_an_input_of_zero_is_an_input(tmp_path):
    table(tmp_path, instruction=["a", "b"], input=pa.array([0, None]), output=[False, True])
    found = Instructions(str(tmp_path)).rows("train").to_dict()
    assert found == {"instruction": ["a", "b"], "input": ["0", ""], "output": ["false", "true"]}


def test_the_best_completion_is_that_of_the_highest_number(tmp_path):
    completions = [
        {"response": text, "fine-grained_score": score} for text, score in (("2024-01-05", 10.0), ("b", 9.5))
    ]
    (tmp_path / "train.jsonl").write_text(json.dumps({"instruction": "003", "completions": completions}))
    found = Instructions(str(tmp_path)).rows("train")[0]
    assert found == {"instruction": "003", "input": "", "output": "2024-01-05"}


def test_options_and_the_right_one_may_be_spelled_or_not(tmp_path):
    for split, right in (("train", "1"), ("test", 1)):
        row = {"question": "2024-01-05", "choices": [1.10, "003"], "answer": right, "image": {"path": None}}
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row).replace("1.1", "1.10"))
        found = ScienceQA(str(tmp_path)).rows(split)[0]
        assert found["instruction"].startswith("Question: 2024-01-05\nOptions: (A) 1.10 (B) 003\n")
        assert found["output"] == "B"


def test_questions_ids_and_answers_are_text(tmp_path, backbone_folder):
    row = {"id": "003", "context": "2024-01-05", "question": "12:30", "answers": {"text": ["05"], "answer_start": [8]}}
    (tmp_path / "dev.jsonl").write_text(json.dumps(row))
    data = SQuAD(str(tmp_path), tokenizer=backbone_folder("bert"), max_length=40, stride=6, max_query_length=12)
    data.setup("validate")
    assert data.questions("val", data.question_of("val")) == {"id": ["003"], "answers": [["05"]]}


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "list.json"])
def test_a_corpus_is_text(name, tmp_path):
    assert list(read_passages(write(tmp_path, name, ["003", "2024-01-05"]))) == ["003\n", "2024-01-05\n"]


def test_a_function_without_tests_is_refused(tmp_path):
    row = {"task_id": "x/0", "prompt": "def f():\n", "entry_point": "f", "canonical_solution": "", "test": None}
    (tmp_path / "test.jsonl").write_text(json.dumps(row))
    with pytest.raises(InputError, match=r"test.jsonl, line 1: test is None, not text"):
        humaneval.read_problems(str(tmp_path))


def test_the_harness_is_given_text(tmp_path):
    (tmp_path / "boolq").mkdir()
    rows = ["instruction,number,answer", "Is it? Answer format: true/false,003,true"]
    (tmp_path / "boolq" / "test.csv").write_text("\n".join(rows))
    found = local_data.commonsense("boolq", str(tmp_path), "{number}: {instruction}")["test"][0]
    assert found["prompt"] == "003: Is it? Answer format: true/false"
    assert (found["answer"], found["gold"]) == ("true", 0)


def test_a_prompt_for_the_harness_names_columns_that_hold_text(tmp_path):
    (tmp_path / "boolq").mkdir()
    row = {"instruction": "Answer format: true/false", "input": None, "answer": "true"}
    (tmp_path / "boolq" / "test.jsonl").write_text(json.dumps(row))
    with pytest.raises(InputError, match=r"boolq/test.jsonl, line 1: input is None, not text"):
        local_data.commonsense("boolq", str(tmp_path), "{instruction}{input}")
    with pytest.raises(InputError, match=r"boolq/test.jsonl: no column other"):
        local_data.commonsense("boolq", str(tmp_path), "{other}")


def test_a_file_on_the_hub_is_read_as_one_that_is_here(tmp_path, monkeypatch):
    local = tmp_path / "blob"
    local.write_text('[{"instruction": "2024-01-05"}]')
    monkeypatch.setattr(datasets.DownloadManager, "download", lambda self, url: str(local))
    assert read_rows("hf://datasets/someone/something/alpaca_eval.json")["instruction"][:] == ["2024-01-05"]
