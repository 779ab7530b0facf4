"""`lit-spectral analyze` on real files: what it writes is what was measured, and bad input is one line."""

import csv
from dataclasses import replace

import pytest
import torch
from exporting import LOW_RANK, OTHERS, adapted, base, update_of  # noqa: F401 (a fixture)

from lit_spectral import cli
from lit_spectral.analysis.command import run
from lit_spectral.errors import InputError
from lit_spectral.updates import Delta, Update, exports
from lit_spectral.updates.weights import Weights

SMALL = ["--rank=2", "--top=4"]
FILES = {"index.html", "overview.png", "changes.csv", "weights.csv", "values.csv"}


def rows(file):
    with open(file, encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


@pytest.fixture
def sources(base, tmp_path, monkeypatch):
    """From a method to a folder with an adapter of BERT's: of peft's, or merged weights where ΔW isn't thin."""
    monkeypatch.chdir(tmp_path)

    def write(name, change=lambda update: update):
        model, whole = adapted("BERT", (LOW_RANK | OTHERS)[name])
        update = change(update_of(model, whole, base("BERT")))
        place = tmp_path / name
        exports.write(update, place, "peft" if name in LOW_RANK else "merged")
        return str(place), update

    return write


def test_adapters_of_all_kinds_stand_side_by_side_in_page_tables_and_picture(sources, base, tmp_path, capsys):
    (lora, update), (hira, _) = sources("LoRA"), sources("HiRA")
    page = run([lora, hira, f"--backbone={base('BERT')}", *SMALL, "--output_folder=out"])
    assert {file.name for file in page.parent.iterdir()} == FILES
    html = page.read_text(encoding="utf-8")
    assert f"<title>What test, fine-tuned weights change in {base('BERT').name}</title>" in html
    assert not [part for part in ("<script", 'src="', "<link", "@import", 'href="http', "url(http") if part in html]
    assert len(html.encode()) < 1e6
    assert (tmp_path / "out" / "overview.png").read_bytes().startswith(b"\x89PNG")
    changes = rows("out/changes.csv")
    assert len(changes) == 2 * len(update.changes)
    for row in changes[: len(update.changes)]:
        expected = float(update.changes[row["module"]].singular_values()[0])
        assert float(row["spectral"]) == pytest.approx(expected, rel=1e-5)
        assert row["source"] == "test"
    assert [row["module"] for row in rows("out/weights.csv")] == list(dict.fromkeys(row["module"] for row in changes))
    assert f"page: {page}".replace(str(tmp_path) + "/", "") in capsys.readouterr().out.replace("\n", "")


def test_weights_are_written_with_their_values(sources, base):
    lora, _ = sources("LoRA")
    run([lora, *SMALL, "--output_folder=out"])
    weights, written = Weights(str(base("BERT"))), rows("out/values.csv")
    row = rows("out/weights.csv")[0]
    sigma = torch.linalg.svdvals(weights[row["module"]].double())
    assert [float(row[f"q{n}"]) for n in (2, 4)] == pytest.approx(
        [float(sigma.quantile(0.5)), float(sigma[0])], rel=1e-5
    )
    found = [float(each["sigma"]) for each in written if (each["source"], each["module"]) == ("W0", row["module"])]
    assert found == pytest.approx(sigma.tolist(), rel=1e-4, abs=1e-6)


def test_two_adapters_of_one_method_are_told_apart_by_their_places(sources, tmp_path):
    (one, _), (other, _) = sources("LoRA"), sources("PiSSA")
    run([one, other, *SMALL, "--output_folder=out"])
    assert {row["source"] for row in rows("out/changes.csv")} == {f"test ({one})", f"test ({other})"}


def test_the_same_seed_gives_the_same_tables(sources, tmp_path):
    lora, _ = sources("LoRA")
    for place, seed in (("a", 1), ("b", 1), ("c", 2)):
        run([lora, *SMALL, f"--seed={seed}", f"--output_folder={place}"])
    tables = [(tmp_path / place / "changes.csv").read_text() for place in "abc"]
    assert tables[0] == tables[1] != tables[2]


def test_without_a_rank_it_is_what_every_change_has(sources):
    page = run([sources("LoRA")[0], "--top=4", "--output_folder=out"])
    assert "r = 4, k = 4" in page.read_text(encoding="utf-8")


def zeroed(update):
    changes = {path: Delta(delta.scaled(0.0).factors) for path, delta in update.changes.items()}
    return replace(update, changes=changes)


def whole_alone(update):
    return Update({}, {"classifier.bias": torch.ones(2)}, update.backbone, "", update.origin)


@pytest.mark.parametrize(("flags", "said"), [
    (["--rank=5"], r"--rank 5 is above the rank of bert\.\S+ in test; give at most 4"),
    (["--rank=0"], "rank must be at least 1, not 0"),
    (["--top=33"], r"bert\.\S+ is 32 x 32, and --top is 33; give at most 32"),
    (["--seed=-1"], "--seed is 0 or more and below"),
    (["--rnk=2"], "there is no --rnk; did you mean --rank"),
    (["LoRA"], "LoRA is given twice"),
    (["nowhere"], "nowhere: there is nothing there"),
])  # fmt: skip
def test_what_can_not_be_measured_is_one_line_and_nothing_is_written(flags, said, sources, tmp_path):
    sources("LoRA")
    with pytest.raises(InputError, match=said):
        run(["LoRA", *flags, "--output_folder=out"])
    assert not list((tmp_path / "out").glob("*"))


def test_an_adapter_of_another_backbone_is_refused(sources, base, tmp_path):
    lora, _ = sources("LoRA")
    with pytest.raises(InputError, match="it has no bert"):
        run([lora, f"--backbone={base('Llama')}", *SMALL, "--output_folder=out"])
    assert not list((tmp_path / "out").glob("*"))


def test_a_backbone_of_other_weights_is_refused_where_that_is_known(sources, base, tmp_path):
    lora, _ = sources("LoRA", lambda update: replace(update, digest=Weights(str(base("BERT"))).digest()))
    with pytest.raises(InputError, match="trained on a backbone whose weights differ"):
        run([lora, f"--backbone={base('BERT', torch.bfloat16)}", *SMALL, "--output_folder=out"])
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("change", [zeroed, whole_alone])
def test_a_source_without_a_change_is_refused(sources, change, tmp_path):
    lora, _ = sources("LoRA", change)
    with pytest.raises(InputError, match="it changes no linear map"):
        run([lora, *SMALL, "--output_folder=out"])
    assert not list((tmp_path / "out").glob("*"))


def test_it_is_a_verb(sources, capsys):
    lora, _ = sources("LoRA")
    with pytest.raises(SystemExit) as stop:
        cli.main(["analyze", lora, "--rank=99"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: analyze: --rank 99 is above")
