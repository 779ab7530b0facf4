"""The verbs that follow training, on real files: what they write does what was asked for, and loads in peft."""

import json
import shutil
import subprocess
import sys

import lightning.pytorch as pl
import peft
import pytest
import torch
import transformers
from conftest import move
from test_methods import OURS

from lit_spectral import cli
from lit_spectral.errors import InputError
from lit_spectral.tasks import SequenceClassification
from lit_spectral.updates import Delta
from lit_spectral.updates import export_command as export
from lit_spectral.updates import merge_command as merge
from lit_spectral.updates.sources import read
from lit_spectral.updates.weights import Weights

LOW_RANK = [name for name in OURS if not name.startswith(("HiRA", "MoRA", "Full", "BitFit"))]
ROWS = torch.arange(5, 37).view(4, 8)


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=ROWS, attention_mask=torch.ones_like(ROWS)).logits


def near(found, expected, error=1e-5):
    assert (found - expected).norm() <= error * expected.norm()


@pytest.fixture
def checkpoint(backbone_folder, tmp_path):
    """A method's checkpoint after its adapters and head have been moved, and the model as it was then."""

    def make(method, name="a"):
        torch.manual_seed(len(name))
        task = SequenceClassification(backbone_folder("bert"), method, num_labels=2, metrics=["accuracy"])
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = pl.Trainer(max_steps=1, accelerator="cpu", default_root_dir=tmp_path, **quiet)
        row = {"input_ids": ROWS[0], "attention_mask": torch.ones(8, dtype=torch.long), "labels": 1}
        trainer.fit(task, torch.utils.data.DataLoader([row] * 2, batch_size=2))
        move(task.model, 0.05)
        trainer.save_checkpoint(tmp_path / f"{name}.ckpt", weights_only=True)
        return str(tmp_path / f"{name}.ckpt"), task.model

    return make


@pytest.fixture
def loaded(backbone_folder):
    """A folder of peft's, loaded by peft alone."""

    def load(folder):
        auto = transformers.AutoModelForSequenceClassification
        return peft.PeftModel.from_pretrained(auto.from_pretrained(backbone_folder("bert"), num_labels=2), folder)

    return load


@pytest.mark.parametrize("name", LOW_RANK)
def test_exported_to_peft_and_read_again_it_is_the_same(checkpoint, loaded, tmp_path, name):
    source, model = checkpoint(OURS[name])
    out = str(tmp_path / "out")
    export.run([source, "--to", "peft", "--output", out])
    near(logits(loaded(out)), logits(model))
    before, after = read(source), read(out)
    assert after.digest == before.digest
    assert after.origin["method"] == before.origin["method"]
    for path, delta in before.changes.items():
        near(after.changes[path].dense(), delta.dense())
    assert all(torch.equal(after.whole[name], tensor) for name, tensor in before.whole.items())


@pytest.mark.parametrize("name", ["FCLoRA", "HiRA", "MoRA", "FullFineTuning", "BitFit"])
def test_merged_it_is_a_model_without_adapters(checkpoint, backbone_folder, tmp_path, name):
    source, model = checkpoint(OURS[name])
    cli.main(["export", source, "--to", "merged", "--output", str(tmp_path / "out")])
    found = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    near(logits(found), logits(model))
    again = read(str(tmp_path / "out"), backbone_folder("bert"))
    for path, delta in read(source).changes.items():
        weight = transformers.AutoModel.from_pretrained(backbone_folder("bert")).get_submodule(path[5:]).weight
        near(again.changes[path].dense(), delta.dense(weight.detach()), 1e-4)


@pytest.mark.slow
def test_a_folder_of_pefts_is_taken_on_without_loading_peft_or_lightning(checkpoint, tmp_path):
    source, _ = checkpoint(OURS["LoRA"])
    export.run([source, "--output", str(tmp_path / "one")])
    script = f"cli.main(['export', {str(tmp_path / 'one')!r}, '--output', {str(tmp_path / 'two')!r}])"
    heavy = "print('loaded:', *{'peft', 'lightning'} & set(sys.modules))"
    script = f"import sys; from lit_spectral import cli; {script}; {heavy}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded:"


def test_a_cut_is_shown_and_written_down(checkpoint, tmp_path, capsys):
    source, _ = checkpoint(OURS["HiRA"])
    cli.main(["export", source, "--rank", "3", "--output", str(tmp_path / "out")])
    assert "cut off" in capsys.readouterr().out
    assert f"lit-spectral export {source} --rank 3" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_merged_adapters_of_two_methods_are_the_weighted_sum(checkpoint, loaded, tmp_path):
    one, other = checkpoint(OURS["HiPLoRA"])[0], checkpoint(OURS["RsLoRA"], "other")[0]
    out = str(tmp_path / "out")
    cli.main(["merge", one, other, "--weights=1,-0.5", "--output", out])
    first, second, found = read(one), read(other), read(out)
    for path, delta in found.changes.items():
        near(delta.dense(), first.changes[path].dense() - 0.5 * second.changes[path].dense())
    loaded(out)


def test_heads_are_those_asked_for(checkpoint, tmp_path):
    one, other = checkpoint(OURS["LoRA"])[0], checkpoint(OURS["PiSSA"], "other")[0]
    merge.run([one, other, "--heads_of", other, "--rule", "tsv", "--output", str(tmp_path / "out")])
    found, expected = (read(place).whole["classifier.weight"] for place in (str(tmp_path / "out"), other))
    assert torch.equal(found, expected)


def test_a_merge_with_a_method_that_multiplies_the_weight_is_merged_into_it(checkpoint, backbone_folder, tmp_path):
    one, other = checkpoint(OURS["HiRA"])[0], checkpoint(OURS["LoRA"], "other")[0]
    merge.run([one, other, "--to", "merged", "--output", str(tmp_path / "out")])
    base = transformers.AutoModel.from_pretrained(backbone_folder("bert"))
    found = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    deltas = [read(source).changes for source in (one, other)]
    for path in deltas[0]:
        weight = base.get_submodule(path.removeprefix("bert.")).weight.detach()
        change = Delta.added([deltas[0][path], deltas[1][path]]).dense(weight)
        near(found.get_submodule(path).weight.detach() - weight, change, 1e-4)


def test_mended_in_the_order_of_the_flags(checkpoint, tmp_path, capsys):
    source, _ = checkpoint(OURS["LoRA"])
    cli.main(["mend", source, "--ball", "0.05", "--scale", "0.5", "--output", str(tmp_path / "out")])
    found = read(str(tmp_path / "out"))
    norms = [float(torch.linalg.matrix_norm(delta.dense(), 2)) for delta in found.changes.values()]
    assert max(norms) == pytest.approx(0.025, rel=1e-4)
    assert found.origin["mended"] == ["ball 0.05", "scale 0.5"]
    told = capsys.readouterr().out
    assert "ball 0.05" in told
    assert "stay as they are" in told


def test_spectra_are_shown_and_drawn(checkpoint, backbone_folder, tmp_path, capsys):
    source, _ = checkpoint(OURS["FCLoRA"])
    plot = tmp_path / "spectra.png"
    cli.main(["spectra", source, "--backbone", backbone_folder("bert"), "--leading", "3", "--plot", str(plot)])
    assert "low-rank" in capsys.readouterr().out
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_without_a_backbone_of_their_own_spectra_ask_for_none(checkpoint, tmp_path, capsys):
    source, _ = checkpoint(OURS["LoRA"])
    export.run([source, "--output", str(tmp_path / "out")])
    config = tmp_path / "out" / "adapter_config.json"
    settings = json.loads(config.read_text(encoding="utf-8")) | {"base_model_name_or_path": None}
    config.write_text(json.dumps(settings), encoding="utf-8")
    cli.main(["spectra", str(tmp_path / "out")])
    assert "W₀" not in capsys.readouterr().out


def test_adapters_of_different_backbones_are_not_merged(checkpoint, tmp_path):
    one, other = checkpoint(OURS["LoRA"])[0], checkpoint(OURS["LoRA"], "other")[0]
    for name, source in (("one", one), ("two", other)):
        export.run([source, "--output", str(tmp_path / name)])
    file = tmp_path / "two" / "adapter_model.safetensors"
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(file, "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        noted = json.loads(opened.metadata()["lit_spectral"])
    save_file(tensors, file, {"lit_spectral": json.dumps(noted | {"digest": "another-one"})})
    with pytest.raises(InputError, match="are adapters of different backbones"):
        merge.run([str(tmp_path / "one"), str(tmp_path / "two"), "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("architecture", ["bert", "roberta", "deberta", "mpnet", "electra", "albert", "gpt2", "llama"])
def test_of_files_a_backbones_digest_is_that_of_the_model(backbone_folder, architecture):
    folder = backbone_folder(architecture)
    task = SequenceClassification(folder, OURS["LoRA"], num_labels=2, metrics=["accuracy"])
    task.configure_model()
    assert Weights(folder, type(task.model).__name__).digest() == task.backbone_digest


def test_another_backbone_of_the_same_shapes_is_refused(checkpoint, backbone_folder, tmp_path):
    source, _ = checkpoint(OURS["LoRA"])
    export.run([source, "--output", str(tmp_path / "out")])
    shutil.copytree(backbone_folder("bert"), tmp_path / "other")
    model = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "other")
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.weight.mul_(1.1)
    model.save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match="was trained on a backbone whose weights differ"):
        export.run([str(tmp_path / "out"), "--to", "merged", "--backbone", str(tmp_path / "other"),
                    "--output", str(tmp_path / "merged")])  # fmt: skip
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("verb", ["export", "merge", "mend"])
def test_a_folder_that_is_not_empty_is_refused_before_anything_is_read(verb, tmp_path, capsys):
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    flags = ["--scale", "1"] if verb == "mend" else []
    with pytest.raises(SystemExit):
        cli.main([verb, "nowhere", *flags, "--output", str(tmp_path)])
    assert "is there and not empty; give a new folder" in capsys.readouterr().err


def test_a_backbone_that_has_gone_is_told(checkpoint, tmp_path, backbone_folder):
    source, _ = checkpoint(OURS["LoRA"])
    export.run([source, "--output", str(tmp_path / "out")])
    config = tmp_path / "out" / "adapter_config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps(settings | {"base_model_name_or_path": "/nowhere"}), encoding="utf-8")
    with pytest.raises(InputError, match="there is no folder /nowhere"):
        export.run([str(tmp_path / "out"), "--to", "merged", "--output", str(tmp_path / "merged")])
    shutil.copytree(backbone_folder("bert"), tmp_path / "moved")
    export.run([str(tmp_path / "out"), "--to", "merged", "--backbone", str(tmp_path / "moved"),
                "--output", str(tmp_path / "merged")])  # fmt: skip
    assert (tmp_path / "merged" / "model.safetensors").is_file()
