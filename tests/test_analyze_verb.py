"""`lit-spectral analyze` on real files: what it writes is what was measured, and bad input is one line."""

import csv
import shutil
from dataclasses import replace

import pytest
import torch
from exporting import LOW_RANK, OTHERS, adapted, base, update_of  # noqa: F401 (a fixture)
from safetensors.torch import load_file, save_file

from lit_spectral import cli
from lit_spectral.analysis.command import measured, parse, run
from lit_spectral.analysis.results import write_tables
from lit_spectral.errors import InputError
from lit_spectral.updates import Delta, Update, exports
from lit_spectral.updates.weights import Weights

FILES = {"index.html", "overview.png", "changes.csv", "weights.csv", "values.csv"}


def rows(file):
    with open(file, encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


@pytest.fixture
def sources(base, tmp_path, monkeypatch):
    """From a method to a folder with an adapter of BERT's: of peft's, or merged weights where ΔW isn't thin."""
    monkeypatch.chdir(tmp_path)

    def write(name, change=lambda update: update, to=None):
        model, whole = adapted("BERT", (LOW_RANK | OTHERS)[name])
        update = change(update_of(model, whole, base("BERT")))
        place = tmp_path / name
        exports.write(update, place, to or ("peft" if name in LOW_RANK else "merged"))
        return str(place), update

    return write


def look(*args):
    """What was measured by these flags, on small subspaces."""
    return measured(parse([*map(str, args), "--rank=2", "--top=4"]))[0]


def test_adapters_of_all_kinds_stand_side_by_side_in_page_tables_and_picture(sources, base, tmp_path, capsys):
    (lora, update), (hira, _) = sources("LoRA"), sources("HiRA")
    page = run([lora, hira, f"--backbone={base('BERT')}", "--rank=2", "--top=4", "--output_folder=out"])
    assert {file.name for file in page.parent.iterdir()} == FILES
    html = page.read_text(encoding="utf-8")
    assert f"<title>What test, fine-tuned weights change in {base('BERT').name}</title>" in html
    assert not [part for part in ('src="', "<link", "@import", 'href="http', "url(http") if part in html]
    assert not [part for part in ("fill: #ffffff", "fill: #000000") if part in html]  # neither seen on its own ground
    assert len(html.encode()) < 1e6
    assert (tmp_path / "out" / "overview.png").read_bytes().startswith(b"\x89PNG")
    changes = rows("out/changes.csv")
    assert len(changes) == 2 * len(update.changes)
    for row in changes[: len(update.changes)]:
        expected = float(update.changes[row["module"]].singular_values()[0])
        assert float(row["spectral"]) == pytest.approx(expected, rel=1e-5)
        assert row["source"] == "test"
    weights, values = rows("out/weights.csv"), rows("out/values.csv")
    assert [row["module"] for row in weights] == list(dict.fromkeys(row["module"] for row in changes))
    first = weights[0]["module"]
    sigma = torch.linalg.svdvals(Weights(str(base("BERT")))[first].double())
    quartiles = [float(sigma.quantile(0.5)), float(sigma[0])]
    assert [float(weights[0][f"q{n}"]) for n in (2, 4)] == pytest.approx(quartiles, rel=1e-5)
    found = [float(each["sigma"]) for each in values if (each["source"], each["module"]) == ("W0", first)]
    assert found == pytest.approx(sigma.tolist(), rel=1e-4, abs=1e-6)
    assert capsys.readouterr().out.splitlines()[-1] == "page: out/index.html"


def test_two_adapters_of_one_method_are_told_apart_by_their_places(sources):
    (one, _), (other, _) = sources("LoRA"), sources("PiSSA")
    assert list(look(one, other).changes) == [f"test ({one})", f"test ({other})"]


def test_the_same_seed_gives_the_same_tables(sources, tmp_path):
    lora, _ = sources("LoRA")
    for place, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_tables(look(lora, f"--seed={seed}"), tmp_path / place)
    tables = [(tmp_path / place / "changes.csv").read_text() for place in "abc"]
    assert tables[0] == tables[1] != tables[2]


def test_without_a_rank_it_is_what_every_change_has(sources):
    assert measured(parse([sources("LoRA")[0], "--top=4"]))[0].rank == 4


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
        run([lora, f"--backbone={base('Llama')}", "--output_folder=out"])
    assert not list((tmp_path / "out").glob("*"))


def test_a_backbone_of_other_weights_is_refused_where_that_is_known(sources, base, tmp_path):
    lora, _ = sources("LoRA", lambda update: replace(update, digest=Weights(str(base("BERT"))).digest()))
    shutil.copytree(base("BERT"), "other")
    tensors = load_file("other/model.safetensors")
    save_file({name: tensor * 1.1 for name, tensor in tensors.items()}, "other/model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="trained on a backbone whose weights differ"):
        run([lora, "--backbone=other", "--output_folder=out"])
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(("change", "to"), [(zeroed, "peft"), (whole_alone, "merged")])
def test_a_source_without_a_change_is_refused(sources, base, change, to, tmp_path):
    source, _ = sources("LoRA", change, to)
    with pytest.raises(InputError, match="it changes no linear map"):
        run([source, f"--backbone={base('BERT')}", "--output_folder=out"])
    assert not list((tmp_path / "out").glob("*"))


def test_a_head_that_is_smaller_than_the_subspaces_is_left_out_and_told(sources, base, caplog):
    hira, _ = sources("HiRA")
    caplog.set_level("INFO", "lit_spectral")
    assert "classifier" not in look(hira, f"--backbone={base('BERT')}").weights
    assert "classifier is 2 x 32, too small for subspaces of 4: left out" in caplog.text


def test_it_is_a_verb(sources, capsys):
    lora, _ = sources("LoRA")
    with pytest.raises(SystemExit) as stop:
        cli.main(["analyze", lora, "--rank=99"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: analyze: --rank 99 is above")
