"""`lit-spectral compare --records`: runs that outlive their folders, and comparisons read from them."""

import csv
import io
import shutil
from pathlib import Path

import pytest
from test_comparison import FOLDER, FRONT, compare  # noqa: F401 (a fixture)

from lit_spectral.comparison.records import Records, read_records
from lit_spectral.comparison.results import write_csv
from lit_spectral.errors import InputError

RESULTS = Path(__file__).parents[1] / "docs" / "results"
KEPT = [*FRONT, "--records", "kept/records.jsonl"]


@pytest.mark.slow
def test_what_records_have_is_not_run_again_though_its_folder_is_gone(compare):
    assert [command[0] for command in compare(*KEPT)] == ["fit", "retain", "fit", "retain"]
    fronts = (FOLDER / "fronts.csv").read_text(encoding="utf-8")
    shutil.rmtree(FOLDER)
    assert compare(*KEPT, "--output_folder", "elsewhere") == []
    assert Path("elsewhere/fronts.csv").read_text(encoding="utf-8") == fronts
    assert "What each method reaches" in Path("elsewhere/index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("flags", [["--trainer.max_epochs=2"], ["--scales=0.3"]])
@pytest.mark.slow
def test_records_of_other_settings_or_scales_stand_for_nothing(compare, flags):
    compare(*KEPT, methods=["LoRA"])
    shutil.rmtree(FOLDER)
    assert [command[0] for command in compare(*KEPT, *flags, methods=["LoRA"])] == ["fit", "retain"]


@pytest.mark.slow
def test_records_of_several_sittings_are_read_as_one_comparison(compare):
    for seeds in (["0"], ["1"]):
        compare(*KEPT, seeds=seeds)
    whole = read_records(Path("kept/records.jsonl"))
    assert [(run.variant.arm, run.seed) for run in whole.runs] == [
        ("LoRA", 0),
        ("FCLoRA", 0),
        ("LoRA", 1),
        ("FCLoRA", 1),
    ]
    assert set(whole.runs[0].scales) == {0.0, 0.5, 1.0}


def test_a_line_that_is_no_record_is_named(tmp_path):
    (tmp_path / "r.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match="line 1 is no record of a run; remove it"):
        Records(tmp_path / "r.jsonl")


@pytest.mark.slow
def test_the_first_method_is_the_reference_whichever_ended_first(compare):
    compare(*KEPT)
    file = Path("kept/records.jsonl")
    file.write_text("".join(reversed(file.read_text(encoding="utf-8").splitlines(True))), encoding="utf-8")
    assert [variant.arm for variant in read_records(file).compared] == ["LoRA", "FCLoRA"]


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (["--LoRA.alpha", "3"], ["--LoRA.alpha", "3,4"]),
        (["--LoRA.alpha", "3"], ["--methods", "LoRA+a=LoRA", "--LoRA+a.alpha", "3"]),
    ],
)
@pytest.mark.slow
def test_a_run_is_found_by_what_it_is_whatever_it_was_called(compare, first, then):
    compare(*KEPT, *first, methods=["LoRA"])
    ran = compare(*KEPT, "--output_folder", "elsewhere", *then, methods=["LoRA"])
    assert [command[0] for command in ran] == ["fit", "retain"]  # the other
    with open("elsewhere/runs.csv", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 2


@pytest.mark.slow
def test_scales_beyond_those_asked_for_are_left_out(compare):
    compare(*KEPT, methods=["LoRA"])
    compare(*KEPT[:-3], "0.5", *KEPT[-2:], "--output_folder", "elsewhere", methods=["LoRA"])
    shutil.rmtree(FOLDER)
    compare(*FRONT[:-1], "0.5", methods=["LoRA"])
    fronts = [Path(folder, "fronts.csv").read_text(encoding="utf-8") for folder in ("elsewhere", str(FOLDER))]
    assert fronts[0] == fronts[1]


@pytest.mark.slow
def test_two_lines_of_one_run_are_refused(compare):
    compare(*KEPT, methods=["LoRA"])
    file = Path("kept/records.jsonl")
    file.write_text(
        file.read_text(encoding="utf-8").replace('"configs": ["', '"configs": ["0", "') * 2, encoding="utf-8"
    )
    with pytest.raises(InputError, match="has LoRA, seed 0, 2 times; keep one line of it"):
        read_records(file)


@pytest.mark.slow
def test_a_metric_that_no_record_has_is_refused(compare):
    compare(*KEPT, methods=["LoRA"])
    with pytest.raises(SystemExit) as stopped:
        compare(*KEPT, "--metric", "val/nothing", methods=["LoRA"])
    assert stopped.value.code == 2


@pytest.mark.parametrize("folder", sorted(file.parent.name for file in RESULTS.glob("*/records.jsonl")))
def test_tables_in_the_docs_are_those_of_their_records(folder, tmp_path):
    write_csv(read_records(RESULTS / folder / "records.jsonl"), tmp_path)
    ours, theirs = (
        list(csv.reader(io.StringIO((place / "table.csv").read_text(encoding="utf-8"))))
        for place in (tmp_path, RESULTS / folder)
    )
    assert ours == theirs
