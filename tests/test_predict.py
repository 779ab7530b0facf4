"""What `predict` writes of each row, and that nothing random is measured or predicted by."""

import json
import os
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import transformers
import yaml
from lit_spectral.datamodules import GLUE
from squad_rows import SHORT, folder, questions, write  # noqa: F401 (fixtures)
from torch.utils.data import DataLoader

from lit_spectral import cli
from lit_spectral.checkpoint import load
from lit_spectral.errors import InputError
from lit_spectral.methods import LoRA, Peft
from lit_spectral.tasks import CausalLM, SequenceClassification
from lit_spectral.tasks.padding_check import TEXTS

QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "max_steps": 2}


def read(file):
    return [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def trained(fit):
    """The path of a checkpoint of a config."""

    def run(config="lora_roberta_mrpc", *flags):
        return fit(
            config, "--trainer.logger.init_args.save_dir=fits", *flags
        ).trainer.checkpoint_callback.best_model_path

    return run


def direct(task, data):
    """Probabilities (rows, classes) of the test split, one row at a time."""
    rows = [{name: row[name] for name in row if name != "labels"} for row in data.splits["test"]]
    with torch.no_grad():
        return torch.cat([task.eval()(data.collate([row])).softmax(-1) for row in rows])


def test_each_row_has_its_class_and_probabilities_in_the_order_of_rows(fit, trained, capsys):
    path = trained()
    capsys.readouterr()
    done = fit("lora_roberta_mrpc", f"--ckpt_path={path}", "--data.eval_batch_size=5", command="predict")
    file = Path(done.trainer.log_dir, "predictions.jsonl")
    expected = direct(done.model, done.datamodule)
    written = read(file)
    assert [set(line) for line in written] == [{"row", "label", "scores"}] * 12
    assert [line["row"] for line in written] == list(range(12))
    names = ["not_equivalent", "equivalent"]  # MRPC's own, for 0 and 1
    assert [line["label"] for line in written] == [names[number] for number in expected.argmax(-1)]
    torch.testing.assert_close(torch.tensor([line["scores"] for line in written]), expected)
    assert capsys.readouterr().out.splitlines() == [f"predictions of 12 rows: {file}"]
    returned = done.trainer.predict_loop.predictions
    assert torch.cat(returned).tolist() == expected.argmax(-1).tolist()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_processes_together_write_every_row_once(strategy, fit, trained, backbone_folder, mrpc_folder, tmp_path):
    path = trained()
    alone = fit("lora_roberta_mrpc", f"--ckpt_path={path}", command="predict").trainer.log_dir
    config = yaml.safe_load(Path(alone, "config.yaml").read_text(encoding="utf-8"))
    config["trainer"] |= {"strategy": strategy, "devices": 2}
    config["data"]["init_args"]["eval_batch_size"] = 2
    Path("both.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    subprocess.run(
        [sys.executable, "-m", "lit_spectral", "predict", "--config=both.yaml", f"--ckpt_path={path}"],
        check=True, timeout=240, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    (together,) = set(tmp_path.glob("runs/*/*/predictions.jsonl")) - {tmp_path / alone / "predictions.jsonl"}
    lines, expected = read(together), read(Path(alone, "predictions.jsonl"))
    assert [line["row"] for line in lines] == [line["row"] for line in expected] == list(range(12))
    for line, other in zip(lines, expected, strict=True):
        assert line["scores"] == pytest.approx(other["scores"], rel=1e-4)


def test_in_regression_the_label_is_the_number(fit, trained):
    flags = ("lora_roberta_stsb", "--data.task=stsb")
    done = fit(*flags, f"--ckpt_path={trained(*flags)}", command="predict")
    written = read(Path(done.trainer.log_dir, "predictions.jsonl"))
    values = torch.cat(done.trainer.predict_loop.predictions).tolist()
    assert written == [{"row": row, "label": value} for row, value in enumerate(values)]


def test_an_answer_is_written_beside_its_prompt_a_file_a_set(command, tmp_path, monkeypatch):
    for name in ("boolq", "piqa"):
        (tmp_path / name).mkdir()
        gold = {"boolq": "true", "piqa": "solution1"}[name]
        rows = [{"instruction": f"is it {row}?", "input": "", "output": "", "answer": gold} for row in range(5)]
        (tmp_path / name / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(
        "lit_spectral.tasks.causal_lm.continue_batch", lambda model, tokenizer, batch, *rest: batch["prompt"]
    )
    flags = ["--data=Commonsense", "--data.path=.", "--data.sets=[boolq,piqa]", "--data.batch_size=2"]
    done = command("predict", *flags, "--data.template=plain", "--data.max_new_tokens=2")
    for name in ("boolq", "piqa"):
        written = read(Path(done.trainer.log_dir, f"predictions_{name}.jsonl"))
        assert written == [{"row": i, "prompt": f"is it {i}?", "text": f"is it {i}?"} for i in range(5)]


@pytest.mark.parametrize("version_2", [True, False])
def test_a_question_has_its_id_answer_and_scores(folder, backbone_folder, monkeypatch, version_2):
    monkeypatch.chdir(folder)
    for split, count in (("train", 15), ("validation", 15), ("test", 6)):
        rows = [row for row in questions(count, 2) if version_2 or row["answers"]["text"]]
        write(folder, split, rows)
    config = {
        "trainer": QUIET | {"logger": {"class_path": "CSVLogger", "init_args": {"save_dir": "logs", "name": "x"}}},
        "model": {"class_path": "QuestionAnswering", "init_args": {"backbone": backbone_folder("bert")}},
        "data": {"class_path": "SQuAD", "init_args": {"path": str(folder), "version_2": version_2, **SHORT}},
    }
    (folder / "qa.yaml").write_text(yaml.safe_dump(config))
    path = cli.run(["fit", "--config=qa.yaml"]).trainer.checkpoint_callback.best_model_path
    done = cli.run(["predict", "--config=qa.yaml", f"--ckpt_path={path}", "--data.batch_size=1"])
    log_dir = Path(done.trainer.log_dir)
    written = read(log_dir / "predictions.jsonl")
    assert [line["id"] for line in written] == [row["id"] for row in rows]
    assert {line["id"]: line["text"] for line in written} == json.loads((log_dir / "predictions_test.json").read_text())
    keys = {"row", "id", "text", "score"} | ({"null_odds"} if version_2 else set())
    assert all(set(line) == keys for line in written)


class Reversed(GLUE):
    """Hands out its rows the last one first."""

    def predict_dataloader(self):
        rows = self.splits["test"]
        return DataLoader(rows, batch_size=5, sampler=list(range(len(rows)))[::-1], collate_fn=self.collate)


@pytest.fixture
def fitted(backbone_folder, mrpc_folder, tmp_path, monkeypatch):
    """A task that was fitted in Python, for two steps."""
    monkeypatch.chdir(tmp_path)
    pl.seed_everything(0)
    task = SequenceClassification(backbone_folder("bert"), LoRA())
    pl.Trainer(**QUIET).fit(task, GLUE("mrpc", mrpc_folder, batch_size=8))
    return task


def test_classes_go_by_their_words_and_rows_by_their_numbers_in_whatever_order(fitted, mrpc_folder):
    fitted.label_names = ["other", "same"]
    data, trainer = Reversed("mrpc", mrpc_folder), pl.Trainer(**QUIET)
    trainer.predict(fitted, data)
    expected = direct(fitted, data)
    written = read(Path(trainer.log_dir, "predictions.jsonl"))
    assert [line["row"] for line in written] == list(range(12))
    assert [line["label"] for line in written] == [fitted.label_names[i] for i in expected.argmax(-1)]
    torch.testing.assert_close(torch.tensor([line["scores"] for line in written]), expected)


def test_predictions_without_a_place_are_refused_unless_they_are_returned(fit, trained, fitted, mrpc_folder, tmp_path):
    data = GLUE("mrpc", mrpc_folder)
    assert len(torch.cat(pl.Trainer(**QUIET, logger=False).predict(fitted, data))) == 12
    with pytest.raises(InputError, match="predictions would be lost"):
        pl.Trainer(**QUIET, logger=False).predict(fitted, data, return_predictions=False)
    with pytest.raises(InputError, match="predictions would be lost"):
        fit("lora_roberta_mrpc", "--trainer.logger=false", f"--ckpt_path={trained()}", command="predict")
    assert not list(tmp_path.rglob("predictions*"))


def test_scores_that_are_no_numbers_are_refused(fitted, mrpc_folder, tmp_path):
    data = GLUE("mrpc", mrpc_folder)
    pl.Trainer(**QUIET).predict(fitted, data)
    tried = {token for text in TEXTS for token in data.tokenizer(text)["input_ids"]}
    own = next(token for token in data.splits["test"][0]["input_ids"] if token not in tried)
    with torch.no_grad():
        fitted.model.get_input_embeddings().weight[own] = torch.nan
    with pytest.raises(InputError, match="row 0: its scores are not finite"):
        pl.Trainer(**QUIET, default_root_dir=tmp_path / "second").predict(fitted, data)
    assert not list(tmp_path.glob("second/**/predictions*"))


def test_weights_that_have_diverged_are_named_before_a_row_is_read(fitted, mrpc_folder, tmp_path):
    with torch.no_grad():
        fitted.model.classifier.bias.fill_(torch.nan)
    with pytest.raises(InputError, match=r"^backbone: its scores of a short text are not finite"):
        pl.Trainer(**QUIET).predict(fitted, GLUE("mrpc", mrpc_folder))
    assert not list(tmp_path.rglob("predictions*"))


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_a_new_head_is_neither_measured_nor_predicted_by(fit, verb, tmp_path):
    with pytest.raises(InputError, match=rf"{verb}: classifier\..* neither trained nor loaded; give --ckpt_path"):
        fit("lora_roberta_mrpc", command=verb)
    assert not list(tmp_path.glob("runs/*/version_*"))


def test_a_task_that_was_trained_or_loaded_is_measured(fitted, backbone_folder, mrpc_folder):
    data = GLUE("mrpc", mrpc_folder)
    expected = pl.Trainer(**QUIET).validate(fitted, data)
    (path,) = Path().rglob("*.ckpt")
    again = SequenceClassification(backbone_folder("bert"), LoRA(), num_labels=2)
    again.configure_model()
    again.load_state_dict(fitted.state_dict())
    assert pl.Trainer(**QUIET).validate(load(path), data) == expected
    assert pl.Trainer(**QUIET).validate(again, data) == expected


def test_a_head_of_the_backbones_own_files_is_measured(backbone_folder, mrpc_folder, tmp_path, caplog):
    model = transformers.AutoModelForSequenceClassification.from_pretrained(backbone_folder("bert"), num_labels=2)
    model.save_pretrained(tmp_path / "whole")
    data = GLUE("mrpc", mrpc_folder, tokenizer=backbone_folder("bert"))
    trainer = pl.Trainer(**QUIET, default_root_dir=tmp_path)
    (found,) = trainer.validate(SequenceClassification(str(tmp_path / "whole"), LoRA()), data)
    losses = []
    for row in data.splits["val"]:
        with torch.no_grad():
            losses.append(float(model.eval()(**data.collate([row])).loss))
    assert found["val/loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert sum("no checkpoint is given, so this is of the backbone as it came" in m for m in caplog.messages) == 1


@pytest.mark.parametrize(
    ("config", "random"),
    [
        ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3}, "prompt_encoder"),
        ({"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 3}, "prompt_encoder"),
        ({"peft_type": "LORA", "r": 2, "init_lora_weights": False}, "q_proj"),
        ({"peft_type": "LORA", "r": 2}, None),
        ({"peft_type": "IA3", "feedforward_modules": []}, None),
    ],
)
def test_a_decoder_is_measured_where_its_adapter_changes_nothing(decoder_folder, tmp_path, config, random):
    (tmp_path / "text.txt").write_text("the cat sat on the mat and then slept again " * 20)
    from lit_spectral.datamodules import TextWindows

    data = TextWindows(str(tmp_path / "text.txt"), max_length=16)
    trainer = pl.Trainer(**QUIET, default_root_dir=tmp_path)
    task = CausalLM(decoder_folder(), Peft(config=config))
    if random is None:
        assert trainer.validate(task, data)[0]["val/loss"] > 0
    else:
        with pytest.raises(InputError, match=f"validate: .*{random}.* neither trained nor loaded"):
            trainer.validate(task, data)
