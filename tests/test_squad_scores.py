"""SQuAD's measures and the choice of spans, as pure functions."""

import random

import pytest
import torch

from lit_spectral.scoring import squad


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
