"""`Edits`: which rows are edits, how they are written, what is trained on, and what is refused."""

import json

import datasets
import pytest
import yaml
from conftest import CONFIGS, WORDS
from lit_spectral.datamodules import Edits
from lit_spectral.datamodules import edits as module
from lit_spectral.datamodules.edits import Edit, Probe

from lit_spectral.errors import InputError

ROWS = [
    {"prompt": f"the {who} sat on the", "old": "mat", "new": "hill", "category": kind}
    for who, kind in zip(WORDS[1:6], ("cats", "dogs", "cats", "dogs", "dogs"), strict=True)
]
ALL = [Edit(row["prompt"], " mat", " hill", row["category"]) for row in ROWS]


@pytest.fixture
def given(tmp_path):
    """Edits of these rows, in a folder of theirs."""

    def make(rows=ROWS, stays=None, suffix="jsonl", **settings):
        for name, each in {"train": rows, "unrelated": stays}.items():
            if each is not None:
                text = "".join(json.dumps(row) + "\n" for row in each) if suffix == "jsonl" else each
                (tmp_path / f"{name}.{suffix}").write_text(text, encoding="utf-8")
        return Edits(str(tmp_path), **settings)

    return make


def test_a_part_of_the_set_is_trained_on_answer_and_end_alone_and_validated_on(given, decoder_folder):
    data = given(first=1, count=3, tokenizer=decoder_folder())
    data.setup("fit")
    rows, tokenizer = data.splits["train"], data.tokenizer
    assert data.splits["val"]["input_ids"] == rows["input_ids"]
    assert len(rows) == 3
    before, said = data.laid_out(ALL[1].prompt, ALL[1].new)
    assert before == tokenizer(ALL[1].prompt)["input_ids"]
    assert rows[0]["input_ids"] == [*before, *said, tokenizer.eos_token_id]
    assert rows[0]["labels"] == [-100] * len(before) + [*said, tokenizer.eos_token_id]


def test_csv_and_other_columns_are_read_and_categories_chosen(given):
    text = "q,true,false,kind\nthe cat,mat,hill,a\nthe dog,tree,mat,b\nthe bird,hill,tree,a\n"
    columns = {"prompt": "{q} sat on the", "old": "{true}", "new": "{false}", "category": "{kind}"}
    data = given(text, suffix="csv", categories=["a"], **columns)
    cat, bird = Edit("the cat sat on the", "mat", "hill", "a"), Edit("the bird sat on the", "hill", "tree", "a")
    assert data.edits() == [cat, bird]
    assert data.edits(1) == [bird]
    assert data.edits(0, 1) == [cat]


def test_of_lists_the_first_entry_counts_and_its_fields(given):
    rows = [{"q": "on the", "output": [{"answer": "mat"}, {"answer": "x"}], "others": ["hill", "tree"]}]
    rows += [{"q": "on the", "output": [{"answer": "mat"}], "others": []}]
    columns = {"prompt": "{q}", "old": "{output.answer}", "new": "{others}", "category": ""}
    assert given(rows, unusable="skip", **columns).edits() == [Edit("on the", "mat", "hill", "")]


def test_unrelated_prompts_are_a_file_of_the_folder_one_elsewhere_or_what_is_not_edited(given, tmp_path):
    known = [{"prompt": "then the", "answer": "cat"}, {"prompt": "and the", "answer": "dog"}]
    assert given(stays=known).probes(5, 500) == [Probe("then the", " cat", ""), Probe("and the", " dog", "")]
    assert given(stays=known).probes(5, 1) == [Probe("then the", " cat", "")]
    other = tmp_path / "other.jsonl"
    other.write_text('{"prompt": "over", "category": "far"}\n', encoding="utf-8")
    assert given(unrelated=str(other)).probes(5, 500) == [Probe("over", "", "far")]
    (tmp_path / "unrelated.jsonl").unlink()
    assert given().probes(3, 500) == [Probe(edit.prompt, edit.old, edit.category) for edit in ALL[3:]]
    assert given().probes(5, 500) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"new": ""}, "line 2: the new answer is empty"),
        ({"old": " . "}, "line 2: the old answer is empty, or has neither letter nor digit"),
        ({"prompt": " "}, "line 2: the prompt is empty"),
        ({"new": "mat."}, "line 2: old and new are one answer, 'mat.'; mend the row, or give --data.unusable skip"),
    ],
)
def test_a_row_that_is_no_edit_is_refused_by_its_line_or_left_out(given, change, message):
    rows = [ROWS[0], ROWS[1] | change, *ROWS[2:]]
    with pytest.raises(InputError, match=message):
        given(rows).edits()
    assert given(rows, unusable="skip").edits() == [ALL[0], *ALL[2:]]
    assert given(rows).edits(2) == ALL[2:]  # it isn't used


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([], {}, "is empty"),
        ([{"prompt": "a", "old": "b", "category": "c"}], {}, "no column new; its columns are prompt, old, category"),
        ([ROWS[0] | {"new": None}], {}, "new is None, not text"),
        ([ROWS[0] | {"new": "mat"}], {"unusable": "skip"}, "no edit of .* can be used"),
        (ROWS, {"categories": ["cat"]}, "has no category cat; did you mean cats?"),
        (ROWS, {"first": 5}, "has 5 edits, and none behind 5"),
        (ROWS, {"count": 0}, "count must be at least 1"),
        (ROWS, {"new": "hill"}, "data.new: 'hill' names no column"),
        (ROWS, {"unrelated": "nowhere.jsonl"}, "nowhere.jsonl"),
    ],
)
def test_what_can_not_be_is_one_line(given, rows, settings, message):
    def use():
        data = given(rows, **settings)
        data.rows("train")
        data.probes(5, 500)

    with pytest.raises(InputError, match=message):
        use()


def test_half_an_edit_is_none(given, decoder_folder):
    data = given(tokenizer=decoder_folder(), max_length=6)
    with pytest.raises(InputError, match=r"train\.jsonl, line 1: \d+ tokens, above the 6 of a row"):
        data.setup("fit")


# What the hub's sets are known to hold, a row each.
HUB = {
    "edit_counterfact": (
        {"prompt": "The mother tongue of Danielle Darrieux is", "target_true": " French", "target_false": " English",
         "relation_id": "P103"},
        Edit("The mother tongue of Danielle Darrieux is", " French", " English", ""),
    ),
    "edit_zsre": (
        {"input": "Who built it?", "output": [{"answer": "Ann"}], "alternatives": ["Bob", "Cid"], "prediction": "Dan"},
        Edit("Question: Who built it?\nAnswer:", " Ann", " Bob", ""),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HUB)
def test_the_hubs_columns_are_edits_by_the_shipped_configs(name, monkeypatch):
    row, edit = HUB[name]
    rows = datasets.Dataset.from_list([row])
    for read in ("read_rows", "read_split"):
        monkeypatch.setattr(module, read, lambda *place: rows)
    settings = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))["data"]["init_args"]
    assert Edits(**settings).edits() == [edit]
