"""SQuAD: its scores by hand and beside torchmetrics', windows, and the task through the command line."""

import itertools
import json
import os
import random
import subprocess
import sys

import pytest
import torch
import yaml
from conftest import WORDS
from lit_spectral.datamodules import SQuAD

from lit_spectral import cli, squad
from lit_spectral.checkpoint import load
from lit_spectral.errors import InputError
from lit_spectral.methods import LoRA, Peft
from lit_spectral.tasks import QuestionAnswering


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Cat,\tsat!", "cat sat"),
        ("A theatre an an", "theatre"),
        ("U.S.-based", "usbased"),
        ("a-la", "ala"),
        ("the—end", "—end"),  # only ASCII punctuation goes
        ("", ""),
    ],
)
def test_texts_are_normalised(text, expected):
    assert squad.normalise(text) == expected


@pytest.mark.parametrize(
    ("prediction", "answers", "version_2", "exact", "overlap"),
    [
        ("the Cat.", ["a cat"], False, 1, 1),
        ("black cat", ["cat", "black dog sat"], False, 0, 2 / 3),  # precision 1/2, recall 1; the other gives 2/5
        ("cat cat dog", ["cat dog dog"], False, 0, 2 / 3),  # words count as often as they occur in both
        ("dog", ["cat"], False, 0, 0),
        ("", ["cat"], False, 0, 0),
        ("the", ["an"], False, 1, 0),  # nothing but articles: equal in v1.1, and without a word in common
        ("the", ["an"], True, 1, 1),
        ("", [], True, 1, 1),
        ("cat", [], True, 0, 0),
        ("", ["cat"], True, 0, 0),
        ("", ["the", "cat"], True, 0, 0),  # v2.0 drops "the" since something is left
    ],
)
def test_a_question_is_scored_as_by_hand(prediction, answers, version_2, exact, overlap):
    assert squad.exact_match(prediction, answers, version_2) == exact
    assert squad.f1(prediction, answers, version_2) == pytest.approx(overlap)


def test_scores_are_those_of_torchmetrics_on_random_texts():
    from torchmetrics.functional.text import squad as reference

    draw = random.Random(0)
    # Each text has a word that stays: on texts without one, torchmetrics is neither v1.1 nor v2.0.
    words = ["the", "An", "Cat", "cat", "dog", "U.S.", "1,000", "—", "it's", "of", "!", "über"]
    predictions, answers = [], []
    for _ in range(4000):
        texts = [" ".join([*draw.choices(words, k=draw.randint(0, 5)), draw.choice(words[2:6])]) for _ in range(4)]
        predictions.append(texts[0])
        answers.append(texts[1 : draw.randint(2, 4)])
    targets = [{"answers": {"text": a, "answer_start": [0]}, "id": str(i)} for i, a in enumerate(answers)]
    expected = reference([{"prediction_text": p, "id": str(i)} for i, p in enumerate(predictions)], targets)
    for version_2 in (False, True):
        found = squad.score(predictions, answers, version_2)
        assert found["exact_match"] == pytest.approx(float(expected["exact_match"]), rel=1e-6)
        assert found["f1"] == pytest.approx(float(expected["f1"]), rel=1e-5)


def test_questions_with_and_without_answer_are_scored_apart_in_v2():
    found = squad.score(["cat", "black cat", "dog", "", "dog"], [["cat"], ["cat"], ["cat"], [], []], True)
    assert found == pytest.approx(
        {
            "exact_match": 100 * 2 / 5,
            "f1": 100 * (1 + 2 / 3 + 1) / 5,
            "has_answer_exact_match": 100 / 3,
            "has_answer_f1": 100 * (1 + 2 / 3) / 3,
            "no_answer_f1": 100 / 2,
        }
    )


def test_v1_has_no_parts():
    assert squad.score(["cat"], [["cat"]], False) == {"exact_match": 100, "f1": 100}


def test_a_part_without_questions_is_left_out():
    assert "no_answer_f1" not in squad.score(["cat"], [["cat"]], True)


def test_the_best_threshold_is_the_best_of_all():
    draw = random.Random(1)
    for _ in range(50):
        has_answer = [draw.random() < 0.5 for _ in range(12)]
        values = [draw.random() if has else 0.0 for has in has_answer]
        differences = [draw.gauss(0, 1) for _ in values]

        def at(threshold, has_answer=has_answer, values=values, differences=differences):
            silent = [d > threshold for d in differences]
            kept = [float(not h) if s else v for s, h, v in zip(silent, has_answer, values, strict=True)]
            return 100 * sum(kept) / len(kept)

        best, threshold = squad.best_threshold(values, differences, has_answer)
        assert best == pytest.approx(max(at(t) for t in [*differences, float("-inf")]))
        assert best == pytest.approx(at(threshold))


def test_the_best_span_is_the_best_of_all_in_the_context():
    generator = torch.Generator().manual_seed(0)
    start, end = torch.randn(2, 40, 17, generator=generator)
    context = torch.tensor([[3, 15], [5, 5], [1, 16], [8, 10]] * 10)
    for longest in (1, 4, 30):
        scores, first, last = squad.best_spans(start, end, context, longest)
        for row, (low, high) in enumerate(context.tolist()):
            spans = [(i, j) for i in range(low, high + 1) for j in range(i, min(high, i + longest - 1) + 1)]
            expected = max(spans, key=lambda span, row=row: float(start[row, span[0]] + end[row, span[1]]))
            assert (int(first[row]), int(last[row])) == expected
            assert float(scores[row]) == float(start[row, expected[0]] + end[row, expected[1]])


def test_a_question_takes_the_best_span_and_the_least_null_score_of_its_windows():
    best = squad.best_windows(
        torch.tensor([7, 2, 7, 7, 2]), torch.tensor([1.0, 4, 3, 2, 0]), torch.tensor([5.0, -1, 6, 4, -2])
    )
    assert [part.tolist() for part in best] == [[2, 7], [1, 2], [-2, 4]]


def passage(generator, length):
    return " ".join(WORDS[i] for i in torch.randint(len(WORDS), (length,), generator=generator))


def questions(count, seed, longest=60):
    """Contexts of up to `longest` words, of which 1 to 3 are the answer; every third has none."""
    generator = torch.Generator().manual_seed(seed)
    for number in range(count):
        context = passage(generator, 4 + int(torch.randint(longest - 3, (1,), generator=generator)))
        words = context.split()
        texts, places = [], []
        for _ in range(2 if number % 3 else 0):
            at = int(torch.randint(len(words) - 3, (1,), generator=generator))
            texts.append(" ".join(words[at : at + 1 + number % 3]))
            places.append(len(" ".join([*words[:at], ""])))
        row = {"id": f"q{number}", "title": "", "context": context, "question": passage(generator, 1 + number % 2)}
        yield row | {"answers": {"text": texts, "answer_start": places}}


def write(folder, split, rows):
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path):
    """A folder in SQuAD v2.0's form, with contexts longer than a window."""
    for seed, (split, count) in enumerate({"train": 24, "validation": 15}.items()):
        write(tmp_path, split, questions(count, seed))
    return tmp_path


SHORT = {"max_length": 40, "stride": 6, "max_query_length": 12}


@pytest.fixture
def read(folder, backbone_folder):
    """SQuAD over the folder, set up for training."""

    def make(stage="fit", **options):
        data = SQuAD(str(folder), **{"tokenizer": backbone_folder("bert"), "batch_size": 4} | SHORT | options)
        data.setup(stage)
        return data

    return make


def test_windows_hold_the_question_and_cover_the_context(read):
    data = read()
    rows = list(questions(15, 1))
    seen = {}
    for window, number in zip(data.splits["val"], data.question_of("val").tolist(), strict=True):
        question = data.tokenizer(rows[number]["question"])["input_ids"]
        assert window["input_ids"][: len(question)] == question
        assert len(window["input_ids"]) <= 40
        first, last = window["context"]
        assert (first, last) == (len(question), len(window["input_ids"]) - 2)
        seen.setdefault(number, []).append(window["input_ids"][first : last + 1])
    assert len(data.splits["val"]) > 20
    for number, parts in seen.items():
        whole = list(parts[0])
        for part in parts[1:]:
            assert whole[-6:] == part[:6]  # the stride
            whole += part[6:]
        assert whole == data.tokenizer(rows[number]["context"], add_special_tokens=False)["input_ids"]


def test_labels_are_the_first_answer_where_all_of_it_is_in_the_window_else_the_first_token(read):
    data, rows = read(), list(questions(15, 1))
    labelled = {}
    for index, window in enumerate(data.splits["val"]):
        number = int(data.question_of("val")[index])
        span = window["start_positions"], window["end_positions"]
        answer = (rows[number]["answers"]["text"] or [None])[0]
        if span != (0, 0):
            (text,) = data.texts("val", torch.tensor([index]), *(torch.tensor([place]) for place in span))
            assert text == answer
        labelled[number] = labelled.get(number, False) or span != (0, 0)
    assert labelled == {number: bool(row["answers"]["text"]) for number, row in enumerate(rows)}


def test_training_windows_have_the_labels_of_evaluation_windows(folder, read):
    write(folder, "train", questions(15, 1))
    data = read()
    for name in ("input_ids", "start_positions", "end_positions"):
        assert data.splits["train"][name][:] == data.splits["val"][name][:]


def test_texts_are_cut_from_the_context_as_it_is_written(folder, read):
    row = {
        "id": "x",
        "context": "On the\u2003MAT,  über sat",
        "question": "dog",
        "answers": {"text": [], "answer_start": []},
    }
    write(folder, "validation", [row])
    data = read("validate")
    first, last = data.splits["val"][0]["context"]
    assert data.texts("val", torch.tensor([0]), torch.tensor([first]), torch.tensor([last])) == [row["context"]]


def test_batches_are_padded_on_the_right(read):
    data = read()
    data.tokenizer.padding_side = "left"
    batches = list(data.train_dataloader())
    assert set(batches[0]) == {*data.tokenizer("the"), "start_positions", "end_positions"}
    assert all((batch["attention_mask"].diff(dim=1) <= 0).all() for batch in batches)
    assert any((batch["attention_mask"] == 0).any() for batch in batches)


def test_evaluation_batches_name_their_windows(read):
    data = read()
    batches = list(data.val_dataloader()[0])
    assert sorted(torch.cat([batch["window"] for batch in batches]).tolist()) == list(range(len(data.splits["val"])))
    assert all(batch["context"].shape == (len(batch["window"]), 2) for batch in batches)


def test_a_long_question_is_cut_and_counted(read, caplog):
    caplog.set_level("INFO", "lit_spectral")
    data = read(max_query_length=3)
    lengths = [len(data.tokenizer(row["question"])["input_ids"]) - 2 for row in questions(15, 1)]
    count = sum(length > 3 for length in lengths)
    assert 0 < count < 15
    assert f"validation: {count} of 15 questions are cut to 3 tokens" in caplog.text
    assert max(window["context"][0] for window in data.splits["val"]) == 3 + 2


GOOD = {"id": "g", "context": "the cat sat", "question": "who", "answers": {"text": ["cat"], "answer_start": [4]}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": {"text": ["cat"], "answer_start": [3]}}, "row 1: the answer 'cat' is not at character 3"),
        ({"answers": {"text": ["dog"], "answer_start": [4]}}, "the answer 'dog' .* --data.skip_misplaced true"),
        ({"answers": {"text": ["cat"], "answer_start": [-7]}}, "is not at character -7"),
        ({"answers": {"text": [" "], "answer_start": [3]}}, "the answer ' ' is not"),
        ({"answers": {"text": ["cat", "sat"], "answer_start": [4]}}, r"2 answers \(text\) have 1 places"),
        ({"answers": {"text": [None], "answer_start": [4]}}, "the answer None is not"),
        ({"answers": None}, r"row 1: answers is .*not the lists text and answer_start"),
        ({"context": " "}, "row 1: context is ' ', not text"),
        ({"question": None}, "row 1: question is None, not text"),
    ],
)
def test_a_row_that_can_not_be_used_is_named(folder, read, change, message):
    write(folder, "train", [GOOD, GOOD | change])
    with pytest.raises(InputError, match=rf"{folder}, split train, row 1: |{message}") as raised:
        read()
    assert raised.match(message)


@pytest.mark.parametrize("missing", ["id", "context", "question", "answers"])
def test_a_missing_column_is_named(folder, read, missing):
    write(folder, "train", [{key: value for key, value in GOOD.items() if key != missing}])
    with pytest.raises(InputError, match=rf"split train: no column {missing}; its columns are"):
        read()


def test_a_question_without_answer_is_refused_in_v1(folder, read):
    with pytest.raises(InputError, match=r"split train, row 0: it has no answer; give --data.version_2 true"):
        read(version_2=False)


def test_ids_that_repeat_are_refused_where_predictions_need_them(folder, read):
    write(folder, "validation", [GOOD, GOOD])
    with pytest.raises(InputError, match="split validation: 1 rows repeat an id"):
        read()


def test_a_truncated_file_names_the_line(folder, read):
    (folder / "train.jsonl").write_text(json.dumps(GOOD) + "\n\n" + json.dumps(GOOD)[:40])
    with pytest.raises(InputError, match=r"train.jsonl, line 3 can't be read"):
        read()


def test_misplaced_answers_are_left_out_and_counted_on_request(folder, read, caplog):
    caplog.set_level("INFO", "lit_spectral")
    write(folder, "train", [GOOD, GOOD | {"answers": {"text": ["cat"], "answer_start": [3]}}, GOOD])
    data = read(skip_misplaced=True)
    assert len(data.splits["train"]) == 2
    assert "train: 1 of 3 questions with an answer that is not at its place" in caplog.text


def test_nothing_left_is_refused(folder, read):
    write(folder, "train", [GOOD | {"answers": {"text": ["cat"], "answer_start": [3]}}])
    with pytest.raises(InputError, match="no row has its answers at their places"):
        read(skip_misplaced=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 25}, "a window of 40 tokens has 25 left beside a question of 12, and needs more than the stride"),
        ({"stride": -1}, "stride is at least 0"),
        ({"max_query_length": 0}, "max_query_length at least 1"),
    ],
)
def test_windows_that_can_not_be_cut_are_refused(read, options, message):
    with pytest.raises(InputError, match=message):
        read(**options)


def test_windows_are_cached_by_content_and_settings(folder, read):
    def files(**options):
        data = read(**options)
        return {name: sorted(file["filename"] for file in rows.cache_files) for name, rows in data.splits.items()}

    first = files()
    made = {path.name: path.stat().st_mtime_ns for path in folder.parent.glob("**/cache-*.arrow")}
    assert files() == first
    assert {path.name: path.stat().st_mtime_ns for path in folder.parent.glob("**/cache-*.arrow")} == made
    assert files(stride=5)["train"] != first["train"]
    write(folder, "train", questions(24, 9))
    changed = files()
    assert changed["train"] != first["train"]
    assert changed["val"] == first["val"]


@pytest.fixture(params=["bert", "deberta", "roberta", "mpnet"])
def task(request, backbone_folder):
    torch.manual_seed(0)
    made = QuestionAnswering(backbone_folder(request.param), LoRA(rank=2))
    made.configure_model()
    return made.eval()


@pytest.fixture
def batch():
    """Two windows of 12 and 9 tokens."""
    ids = torch.randint(5, 64, (2, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    places = {"start_positions": torch.tensor([5, 0]), "end_positions": torch.tensor([7, 0])}
    return {"input_ids": ids * mask, "attention_mask": mask} | places


def rows(batch, *numbers, width=None):
    return {name: t[list(numbers)][:, :width] if t.ndim > 1 else t[list(numbers)] for name, t in batch.items()}


def loss(task, batch):
    task.log = lambda *args, **kwargs: None
    with torch.no_grad():
        return float(task.training_step(batch, 0))


def test_the_loss_is_that_of_transformers(task, batch):
    whole = rows(batch, 0)
    with torch.no_grad():
        assert loss(task, whole) == pytest.approx(float(task.model(**whole).loss), rel=1e-5)


def test_padding_does_not_change_the_loss(task, batch):
    apart = loss(task, rows(batch, 0)), loss(task, rows(batch, 1, width=9))
    assert loss(task, batch) == pytest.approx(sum(apart) / 2, rel=1e-5)


def test_the_head_is_trained(task):
    assert task.model.qa_outputs.weight.requires_grad


@pytest.mark.parametrize("peft_type", ["PROMPT_TUNING", "PREFIX_TUNING"])
def test_learned_prompts_leave_the_positions_of_the_batch(backbone_folder, batch, peft_type):
    task = QuestionAnswering(backbone_folder("bert"), Peft(config={"peft_type": peft_type, "num_virtual_tokens": 4}))
    task.configure_model()
    start, end = task.eval()(batch)
    assert start.shape == end.shape == (2, 12)
    assert (start == torch.finfo(torch.float32).min).tolist() == (batch["attention_mask"] == 0).tolist()


@pytest.fixture
def command(folder, backbone_folder, monkeypatch):
    """Run a subcommand on the folder with a tiny encoder; returns the LightningCLI."""
    config = {
        "trainer": {
            "max_epochs": 1,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": {
                "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
                "init_args": {"save_dir": str(folder), "name": "runs"},
            },
        },
        "model": {
            "class_path": "QuestionAnswering",
            "init_args": {
                "max_answer_length": 3,
                "backbone": backbone_folder("bert"),
                "method": {"class_path": "LoRA", "init_args": {"rank": 2}},
            },
        },
        "data": {"class_path": "SQuAD", "init_args": {"path": str(folder), "batch_size": 4, **SHORT}},
    }
    (folder / "experiment.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(folder)
    return lambda name, *flags: cli.run([name, f"--config={folder / 'experiment.yaml'}", *flags])


def direct(done, threshold=0.0):
    """Predictions of the finished command's model, a window and a span at a time."""
    data, model = done.datamodule, done.model.model.eval()
    tokenizer, predictions = data.tokenizer, {}
    for row in questions(15, 1):
        encoded = tokenizer(
            row["question"], row["context"], truncation="only_second", max_length=40, stride=6,
            return_overflowing_tokens=True, return_offsets_mapping=True,
        )  # fmt: skip
        spans, nulls = [], []
        for window in range(len(encoded["input_ids"])):
            with torch.no_grad():
                out = model(**{name: torch.tensor([encoded[name][window]]) for name in ("input_ids", "attention_mask")})
            start, end = out.start_logits[0].tolist(), out.end_logits[0].tolist()
            nulls.append(start[0] + end[0])
            places, part = encoded["offset_mapping"][window], encoded.sequence_ids(window)
            for i, j in itertools.product(range(len(part)), repeat=2):
                if part[i] == part[j] == 1 and i <= j < i + 3:
                    spans.append((start[i] + end[j], row["context"][places[i][0] : places[j][1]]))
        score, text = max(spans)
        predictions[row["id"]] = "" if min(nulls) - score > threshold else text
    return predictions


@pytest.mark.parametrize("threshold", [-0.3, 0.0, 0.3])
def test_validate_scores_and_writes_the_predictions_of_whole_questions(command, folder, threshold):
    torch.manual_seed(0)
    done = command("validate", f"--model.null_threshold={threshold}")
    expected = direct(done, threshold)
    (written,) = folder.glob("runs/*/predictions_val.json")
    assert json.loads(written.read_text()) == expected
    answers = {row["id"]: row["answers"]["text"] for row in questions(15, 1)}
    scores = squad.score([expected[key] for key in answers], list(answers.values()), True)
    metrics = done.trainer.callback_metrics
    assert {name: float(metrics[f"val/{name}"]) for name in scores} == pytest.approx(scores, rel=1e-5)


def test_thresholds_answer_all_or_nothing(command):
    nothing = command("validate", "--model.null_threshold=-1000").trainer.callback_metrics
    assert (nothing["val/f1"], nothing["val/no_answer_f1"], nothing["val/has_answer_f1"]) == (
        pytest.approx(100 / 3), 100, 0,
    )  # fmt: skip
    assert command("validate", "--model.null_threshold=1000").trainer.callback_metrics["val/no_answer_f1"] == 0


def test_the_threshold_found_best_gives_the_score_it_promises(command):
    first = command("validate").trainer.callback_metrics
    threshold = str(float(first["val/best_f1_threshold"]) + 1e-6).replace("inf", ".inf")  # as YAML writes it
    again = command("validate", f"--model.null_threshold={threshold}").trainer.callback_metrics
    assert float(again["val/f1"]) == pytest.approx(float(first["val/best_f1"]), rel=1e-5)


def test_the_loss_is_a_mean_over_windows(command):
    done = command("validate", "--data.eval_batch_size=1")
    task = done.model.eval()
    apart = [loss(task, done.datamodule.collate([row])) for row in done.datamodule.splits["val"]]
    assert float(done.trainer.callback_metrics["val/loss"]) == pytest.approx(sum(apart) / len(apart), rel=1e-5)


def test_a_set_read_in_part_is_scored_by_the_windows_read(command, folder):
    command("validate", "--trainer.limit_val_batches=1", "--data.eval_batch_size=3")
    (written,) = folder.glob("runs/*/predictions_val.json")
    assert 1 <= len(json.loads(written.read_text())) <= 3


def test_v1_always_answers(command, folder):
    for split, seed in (("train", 0), ("validation", 1)):
        write(folder, split, [row for row in questions(15, seed) if row["answers"]["text"]])
    done = command("fit", "--data.version_2=false", "--model.null_threshold=-1000")
    metrics = {name for name in done.trainer.callback_metrics if name.startswith("val/")}
    assert metrics == {"val/loss", "val/exact_match", "val/f1"}
    command("validate", "--data.version_2=false", "--model.null_threshold=-1000")
    (written,) = folder.glob("runs/*/predictions_val.json")
    assert all(json.loads(written.read_text()).values())
    assert not list(folder.glob("runs/*/null_odds_val.json"))


@pytest.mark.parametrize("method", ["LoRA", "FCLoRA", "HiLoRA", "FullFineTuning"])
def test_fit_logs_and_a_checkpoint_rebuilds_the_task(command, folder, method, batch):
    done = command("fit", f"--model.method={method}")
    assert {"train/loss", "val/f1", "val/has_answer_f1", "val/no_answer_f1"} <= set(done.trainer.callback_metrics)
    assert not list(folder.glob("runs/*/predictions_val.json"))
    (path,) = folder.glob("runs/*/checkpoints/*.ckpt")
    again = load(path)
    assert again.max_answer_length == 3
    with torch.no_grad():
        assert torch.equal(again(batch)[0], done.model.eval()(batch)[0])


def test_test_and_predict_use_the_test_split(command, folder):
    hidden = [{key: row[key] for key in ("id", "context", "question")} for row in questions(6, 2)]
    write(folder, "test", questions(6, 2))
    assert "test/f1" in command("test").trainer.callback_metrics
    (tested,) = folder.glob("runs/*/predictions_test.json")
    texts = json.loads(tested.read_text())
    tested.unlink()
    write(folder, "test", hidden)
    command("predict", "--seed_everything=42")
    (predicted,) = folder.glob("runs/*/predictions_test.json")
    assert json.loads(predicted.read_text()) == texts


def test_another_data_module_is_refused(command, mrpc_folder):
    with pytest.raises(InputError, match="give SQuAD, or one like it"):
        command("validate", "--data=GLUE", "--data.task=mrpc", f"--data.path={mrpc_folder}")


def test_processes_together_score_every_question_once(command, folder):
    script = (
        "import sys, json; from lit_spectral import cli; trainer = cli.run(sys.argv[1:]).trainer\n"
        "assert trainer.world_size == 2\n"
        "metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}\n"
        "open(f'rank{trainer.global_rank}', 'w').write(json.dumps(metrics))\n"
    )
    (folder / "measure.py").write_text(script)
    flags = ["--config=experiment.yaml", "--trainer.strategy=ddp", "--trainer.devices=2", "--seed_everything=1"]
    subprocess.run(
        [sys.executable, "measure.py", "validate", *flags],
        cwd=folder, check=True, timeout=240, env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True,
    )  # fmt: skip
    expected = command("validate", "--seed_everything=1").trainer.callback_metrics
    for rank in (0, 1):
        found = json.loads((folder / f"rank{rank}").read_text())
        assert found == pytest.approx({name: float(value) for name, value in expected.items()}, rel=1e-5)
