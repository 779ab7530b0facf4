"""SQuAD: the answer that a model's logits name, and how good it is (Rajpurkar et al., 2016 and 2018).

Exact match and F1 are those of the official scripts for v1.1 and v2.0. Logits B × L: B windows of
L tokens; a window is a question and a part of its context.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "BestWindows",
    "best_spans",
    "best_threshold",
    "best_windows",
    "exact_match",
    "f1",
    "normalise",
    "score",
]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower case, without ASCII punctuation, then without English articles, words one blank apart."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Sequence[str], version_2: bool) -> float:
    """1 if the prediction is one of the answers once both are normalised, else 0.

    Args:
        prediction: a text, "" for none.
        answers: those accepted; none, in v2.0, where the question has no answer.
        version_2: score as v2.0's script does, for which answers that normalise to nothing don't count.
    """
    return _best(lambda said, wanted: float(said == wanted), prediction, answers, version_2)


def f1(prediction: str, answers: Sequence[str], version_2: bool) -> float:
    """The largest F1 between the words of the prediction and those of an answer, in 0 to 1.

    Arguments are those of `exact_match`. Two texts without words agree in v2.0, and don't in v1.1.
    """

    def words(said: str, wanted: str) -> float:
        if version_2 and not (said and wanted):
            return float(said == wanted)
        first, second = said.split(), wanted.split()
        shared = sum((Counter(first) & Counter(second)).values())
        # As 2PR / (P + R) in this order, so that the figures are the official ones to the last bit.
        precision, recall = shared / max(1, len(first)), shared / max(1, len(second))
        return 2 * precision * recall / (precision + recall) if shared else 0.0

    return _best(words, prediction, answers, version_2)


def score(predictions: Sequence[str], answers: Sequence[Sequence[str]], version_2: bool) -> dict[str, float]:
    """Exact match and F1 over a set, in percent, as the official scripts aggregate them.

    Args:
        predictions: one text a question.
        answers: those accepted, for each question.
        version_2: as in `exact_match`.

    Returns:
        `exact_match` and `f1` over all questions; for v2.0 also `has_answer_exact_match` and
        `has_answer_f1` over those with an answer and `no_answer_f1` over the others, where the two
        measures are the same. A part without questions is left out.
    """
    pairs = list(zip(predictions, answers, strict=True))
    exact = [exact_match(prediction, accepted, version_2) for prediction, accepted in pairs]
    overlap = [f1(prediction, accepted, version_2) for prediction, accepted in pairs]
    found = {"exact_match": _percent(exact), "f1": _percent(overlap)}
    if version_2:
        with_answer = [i for i, accepted in enumerate(answers) if accepted]
        without = [i for i, accepted in enumerate(answers) if not accepted]
        if with_answer:
            found["has_answer_exact_match"] = _percent([exact[i] for i in with_answer])
            found["has_answer_f1"] = _percent([overlap[i] for i in with_answer])
        if without:
            found["no_answer_f1"] = _percent([overlap[i] for i in without])
    return found


def best_threshold(
    values: Sequence[float], differences: Sequence[float], has_answer: Sequence[bool]
) -> tuple[float, float]:
    """The threshold above which a question is best left unanswered, found with the answers known.

    Args:
        values: exact match or F1 of each question's text, in 0 to 1, where it is not left out.
        differences: of each question, the null score less the best span's.
        has_answer: of each question.

    Returns:
        The mean over all questions at that threshold, in percent, and the threshold; -inf when no
        question is best answered.
    """
    order = sorted(range(len(values)), key=lambda i: differences[i])
    # To answer one more question gains its value, or loses the point that silence would have had.
    gains = (values[i] if has_answer[i] else -1.0 for i in order)
    totals = list(accumulate(gains, initial=float(len(values) - sum(has_answer))))
    count = max(range(len(totals)), key=totals.__getitem__)
    return 100.0 * totals[count] / len(values), differences[order[count - 1]] if count else float("-inf")


def best_spans(start: Tensor, end: Tensor, context: Tensor, max_answer_length: int) -> tuple[Tensor, Tensor, Tensor]:
    """In each window, the span of its context with the largest start + end logit.

    All spans are looked at, so there is no list of n best to choose a length for.

    Args:
        start: B × L logits.
        end: B × L logits.
        context: B × 2, first and last token of the context.
        max_answer_length: tokens of a span, at most; at least 1.

    Returns:
        The spans' scores, first and last tokens, each (B,).
    """
    position = torch.arange(start.shape[1], device=start.device)
    outside = (position < context[:, :1]) | (position > context[:, 1:])
    start, end = (logits.masked_fill(outside, float("-inf")) for logits in (start, end))
    ahead = F.pad(end, (0, max_answer_length - 1), value=float("-inf")).unfold(1, max_answer_length, 1)
    best_end, steps = ahead.max(-1)
    scores, first = (start + best_end).max(-1)
    return scores, first, first + steps.gather(1, first[:, None])[:, 0]


class BestWindows(NamedTuple):
    """Of Q questions in ascending order, each tensor (Q,)."""

    questions: Tensor  # their numbers
    windows: Tensor  # which window of each has its best span, an index into what was given
    null_scores: Tensor  # the least of its windows


def best_windows(questions: Tensor, scores: Tensor, null_scores: Tensor) -> BestWindows:
    """Of each question the window with the best span, and its null score.

    A question has no answer only if none of its windows has one, hence the least null score.

    Args:
        questions: (W,) the number of each window's question.
        scores: (W,) of each window's best span.
        null_scores: (W,) start + end logit of each window's first token.
    """
    found, owner = torch.unique(questions, return_inverse=True)
    by_score = scores.argsort(descending=True, stable=True)
    order = by_score[owner[by_score].argsort(stable=True)]
    counts = owner.bincount()
    least = torch.full((len(found),), float("inf"), dtype=null_scores.dtype, device=null_scores.device)
    return BestWindows(
        found, order[counts.cumsum(0) - counts], least.scatter_reduce(0, owner, null_scores, reduce="amin")
    )


def _best(compare: Callable[[str, str], float], prediction: str, answers: Sequence[str], version_2: bool) -> float:
    wanted = [normalise(answer) for answer in answers]
    if version_2:
        wanted = [answer for answer in wanted if answer] or [""]
    said = normalise(prediction)
    return max(compare(said, answer) for answer in wanted)


def _percent(values: Sequence[float]) -> float:
    return 100.0 * sum(values) / len(values)
