"""The papers' benchmarks, and the harness tasks that stand for them."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["BENCHMARKS", "Benchmark"]


class Benchmark(NamedTuple):
    """A benchmark by which a paper compares methods.

    `tasks` are names that the harness knows, its own or, where `ours`, those of this package's
    `evaluation/tasks`; `metric` is the one of theirs that the papers report.
    """

    tasks: tuple[str, ...]
    metric: str
    ours: bool
    papers: str


# `--tasks` takes the keys as well as the harness's names. The one that HiRA has besides, ConvAI2, is
# scored by BLEU and BERTScore on dialogues, for which the harness has nothing. GLUE and SQuAD are
# learned by encoders, whose tasks here measure themselves.
BENCHMARKS = {
    "commonsense": Benchmark(("commonsense",), "exact_match", True, "HiLoRA, HiRA, FCLoRA, MiLoRA"),
    "commonsense_ranked": Benchmark(("commonsense_ranked",), "acc", True, "the same questions, answers ranked"),
    "commonsense_zero_shot": Benchmark(
        (
            "boolq",
            "piqa",
            "social_iqa",
            "hellaswag",
            "winogrande",
            "arc_easy",
            "arc_challenge",
            "openbookqa",
        ),
        "acc",
        False,
        "the same sets, the harness's prompts",
    ),
    "gsm8k": Benchmark(("gsm8k",), "exact_match", False, "HiRA, MiLoRA, HiP-LoRA"),
    "math": Benchmark(("hendrycks_math",), "exact_match", False, "MiLoRA"),
    "mmlu": Benchmark(("mmlu",), "acc", False, "HiP-LoRA"),
    "scienceqa": Benchmark(("scienceqa",), "acc", True, "HiP-LoRA"),
    "humaneval": Benchmark(("humaneval",), "pass_at_k", False, "HiP-LoRA"),
}
