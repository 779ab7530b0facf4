"""`lit-spectral humaneval`: pass@k of a file of completions."""

from __future__ import annotations

from lit_spectral.errors import Parser
from lit_spectral.scoring.humaneval import HUB_ID, evaluate

__all__ = ["run"]


def run(args: list[str]) -> None:
    """Score the file, write what became of each completion, and print pass@k.

    Raises:
        InputError: a flag that there isn't; as in `lit_spectral.scoring.humaneval.evaluate`.
    """
    parser = Parser("lit-spectral humaneval", description="pass@k of completions of HumanEval.")
    parser.add_argument("samples", help='JSON lines {"task_id": …, "completion": …}')
    parser.add_argument("--path", default=HUB_ID, help="hub id, or folder with test.jsonl (%(default)s)")
    parser.add_argument("--results", metavar="FILE", help="where outcomes go (SAMPLES_results.jsonl)")
    parser.add_argument("--timeout", type=float, default=3.0, metavar="SECONDS", help="of a program (%(default)s)")
    parser.add_argument("--allow_code_execution", action="store_true", help="run what the model wrote, in isolation")
    for k, value in evaluate(**vars(parser.parse_args(args))).items():
        print(f"pass@{k}: {value:.4f}")
