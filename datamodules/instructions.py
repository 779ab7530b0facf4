"""Instructions and responses: Alpaca-52k, CodeAlpaca, UltraFeedback and their kind, and what they are tested by."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from lit_spectral.datamodules.answered import AnsweredText
from lit_spectral.datamodules.columns import as_number, as_text
from lit_spectral.datamodules.files import check_columns, read_rows
from lit_spectral.datamodules.prompts import Template
from lit_spectral.datamodules.sources import source_of_file

from lit_spectral.errors import InputError, check_at_least
from lit_spectral.files import write_text
from lit_spectral.scoring import humaneval as functions

__all__ = ["Instructions"]

log = logging.getLogger(__name__)


class Instructions(AnsweredText):
    """Rows of `instruction`, `input` (may be missing) and `output`: Alpaca-52k, CodeAlpaca-20k and others.

    Or UltraFeedback's (Cui et al., 2023): of its `completions`, the one with the highest
    `fine-grained_score` is learned. Tested, where a path is given, on HumanEval and on AlpacaEval's
    instructions; on MMLU by `lit-spectral evaluate --tasks mmlu`.

    HumanEval's functions are given without the template or the line's end behind them, and end where
    the paper's rule ends them. Their completions go to `humaneval_samples.jsonl` beside the generated answers,
    for `lit-spectral humaneval`, which runs them; with `allow_code_execution` they are run at once,
    and pass@k is logged.

    AlpacaEval's responses go to `alpaca_eval_outputs.json`, which its judges read:
    `alpaca_eval --model_outputs FILE`. None is called here; their mean length in characters is logged.

    Args:
        path: a hub id, such as `sahil2801/CodeAlpaca-20k` or `openbmb/UltraFeedback`, or a folder with `train`.
        humaneval: where HumanEval's `test` split is, a folder or hub id (`openai/openai_humaneval`).
        samples: completions of each of HumanEval's problems; more than one need sampling
            (`generation: {do_sample: true, temperature: 0.8, top_p: 0.95}`).
        allow_code_execution: run what the model wrote, in isolation; refused where there is none.
        alpaca_eval: AlpacaEval's file of instructions, `alpaca_eval.json`, or one of that form.
        generator: the model's name in the file of outputs.
        empty_answer: as in `PromptedText`; as they are published, these sets have a few.
        settings: of `AnsweredText`.
    """

    def __init__(
        self,
        path: str = "tatsu-lab/alpaca",
        humaneval: str | None = None,
        samples: int = 1,
        allow_code_execution: bool = False,
        alpaca_eval: str | None = None,
        generator: str = "lit-spectral",
        empty_answer: Literal["error", "skip"] = "skip",
        **settings: Any,
    ) -> None:
        super().__init__(path, empty_answer=empty_answer, **settings)
        check_at_least(1, samples=samples)
        if samples > 1 and not (self.generation or {}).get("do_sample"):
            raise InputError(
                f"data.samples: {samples} completions of a problem would all be alike; "
                "give --data.generation '{do_sample: true, temperature: 0.8}', or one sample"
            )
        self.humaneval = humaneval
        self.samples = samples
        self.allow_code_execution = allow_code_execution
        self.alpaca_eval = alpaca_eval
        self.generator = generator

    @property
    def test_sets(self) -> list[str]:
        """`humaneval`, `alpaca_eval`, or both."""
        return [name for name in ("humaneval", "alpaca_eval") if getattr(self, name) is not None]

    def setup(self, stage: str) -> None:
        """Read the splits; InputError where there is nothing to test on, or code can't be run as was asked."""
        if stage in {"test", "predict"} and not self.test_sets:
            raise InputError(
                "data: nothing to test on; give --data.humaneval or --data.alpaca_eval, "
                "or use `lit-spectral evaluate --tasks mmlu`"
            )
        if stage == "test" and self.allow_code_execution and self.humaneval:
            functions.check_isolation()
        super().setup(stage)

    def rows(self, split: str) -> Any:
        """Rows with the three columns, an output empty where there is none; InputError where columns are missing."""
        rows = super().rows(split)
        source = self.source(split)
        if "completions" in rows.column_names:
            check_columns(rows, ["instruction"], source.name)
            rows = as_text(rows, ["instruction"], source)

            def best(row: dict[str, Any]) -> dict[str, str]:
                return {"instruction": row["instruction"], "input": "", "output": _best(row["completions"])}

            return rows.map(best, remove_columns=rows.column_names, desc=f"reading {split}")
        check_columns(rows, ["instruction", "output"], source.name)
        if "input" not in rows.column_names:
            rows = rows.add_column("input", [""] * len(rows))
        rows = rows.select_columns(["instruction", "input", "output"])
        return as_text(rows, ["input", "output"], source, missing="")

    def test_rows(self, name: str) -> Any:
        """HumanEval's functions, each `samples` times, or AlpacaEval's instructions."""
        import datasets

        if name == "humaneval":
            problems = functions.read_problems(self.humaneval or "")
            # Each problem's draws follow each other.
            tasks = [task for task in problems for _ in range(self.samples)]
            # Tokens of many vocabularies join a line's end and the next one's indentation, so it is left to the answer.
            prompts = [problems[task].prompt.rstrip() for task in tasks]
            return datasets.Dataset.from_dict({"instruction": prompts, "input": [""] * len(tasks), "answer": tasks})
        rows, source = read_rows(self.alpaca_eval or ""), source_of_file(self.alpaca_eval or "")
        check_columns(rows, ["instruction"], source.name)
        if "dataset" not in rows.column_names:
            rows = rows.add_column("dataset", ["alpaca_eval"] * len(rows))
        rows = as_text(rows.select_columns(["instruction", "dataset"]), ["instruction"], source)
        rows = as_text(rows, ["dataset"], source, missing="alpaca_eval")
        return rows.rename_column("dataset", "answer").add_column("input", [""] * len(rows))

    def test_limit(self, name: str) -> int | None:
        """`limit` counts HumanEval's problems, not their completions."""
        return self.limit and self.limit * (self.samples if name == "humaneval" else 1)

    def test_template(self, name: str) -> Template:
        """HumanEval's functions are given as they are."""
        return "plain" if name == "humaneval" else self.template

    def test_generation(self, name: str) -> dict[str, Any]:
        """A function is over where the next statement of the module begins."""
        stop = {"stop_strings": list(functions.STOP)} if name == "humaneval" else {}
        return stop | super().test_generation(name)

    def score_answers(self, name: str, answers: list[dict[str, Any]], folder: Path | None) -> dict[str, float]:
        """Write the file that is judged; pass@k of HumanEval if code may run, mean characters of AlpacaEval."""
        if name == "humaneval":
            return self._score_functions(answers, folder)
        asked = self.test_rows(name)["instruction"]
        outputs = [
            {
                "instruction": asked[answer["row"]],
                "output": answer["text"].strip(),
                "generator": self.generator,
                "dataset": answer["gold"],
            }
            for answer in answers
        ]
        if folder is None:
            log.warning("alpaca_eval: no file of outputs is written, since the trainer has no logger")
        else:
            file = folder / "alpaca_eval_outputs.json"
            write_text(file, json.dumps(outputs, ensure_ascii=False, indent=1))
            log.info("alpaca_eval: outputs to be judged in %s", file)
        return {"mean_characters": sum(len(output["output"]) for output in outputs) / len(outputs)}

    def _score_functions(self, answers: list[dict[str, Any]], folder: Path | None) -> dict[str, float]:
        if folder is not None:
            samples = [{"task_id": answer["gold"], "completion": answer["text"]} for answer in answers]
            file = folder / "humaneval_samples.jsonl"
            write_text(file, "".join(json.dumps(sample) + "\n" for sample in samples))
        if not self.allow_code_execution:
            place = "the trainer has no logger, so they are not kept" if folder is None else f"they are in {file}"
            log.warning("humaneval: completions were not run, since data.allow_code_execution is not given; %s", place)
            return {}
        completions: dict[str, list[str]] = {}
        for answer in answers:
            completions.setdefault(answer["gold"], []).append(answer["text"])
        problems = functions.read_problems(self.humaneval or "")
        asked = {task: problem for task, problem in problems.items() if task in completions}
        scores = functions.score(asked, completions, allow_code_execution=True)
        draws = {task: iter(outcomes) for task, outcomes in scores.outcomes.items()}
        for answer in answers:
            answer["status"] = next(draws[answer["gold"]]).status
        return {f"pass@{k}": value for k, value in scores.pass_at_k.items()}


def _best(completions: Any) -> str:
    """The response with the highest fine-grained score, the first of several; empty where none has text and a score."""
    scored = [
        (score, each["response"])
        for each in (completions if isinstance(completions, list) else [])
        if isinstance(each, Mapping)
        and (score := as_number(each.get("fine-grained_score"))) is not None
        and isinstance(each.get("response"), str)
        and each["response"].strip()
    ]
    return str(max(scored, key=lambda pair: pair[0])[1]) if scored else ""
