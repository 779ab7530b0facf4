"""Answer rules: hand-checked cases, and lm-eval's rules and exact arithmetic on thousands of random ones."""

import random
import re
from fractions import Fraction

import pytest
from lm_eval.tasks.hendrycks_math.utils import is_equiv, last_boxed_only_string, remove_boxed

from lit_spectral.scoring.answers import (
    boxed,
    exact_value,
    final_answer,
    first_keyword,
    keyword_scorer,
    numbers,
    same_mathematics,
    same_number,
    score_marked,
    score_mathematics,
)

ANSWERS = [f"answer{i}" for i in range(1, 6)]


@pytest.mark.parametrize(
    ("text", "keywords", "expected"),
    [
        ("the correct answer is true", ["true", "false"], "true"),
        ("false, since it is not true", ["true", "false"], "false"),
        ("untrue", ["true", "false"], "true"),  # the rule looks inside words
        ("True", ["true", "false"], None),
        ("", ["true", "false"], None),
        ("the correct answer is answer3 answer1", ANSWERS, "answer3"),
        ("answer12", ANSWERS, "answer1"),
        ("Answer2: no. answer4", ANSWERS, "answer4"),
        ("the correct answer is solution2", ["solution1", "solution2"], "solution2"),
        ("ending4ending1", [f"ending{i}" for i in range(1, 5)], "ending4"),
    ],
)
def test_the_first_keyword_counts(text, keywords, expected):
    assert first_keyword(text, keywords) == expected


def test_no_keyword_is_a_wrong_answer():
    assert not keyword_scorer(["true", "false"])("perhaps", "true")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2 + 2 = 4\n#### 4", "4"),
        ("2 + 2 = 4\n#### 1,080.\n#### 7", "1,080"),
        ("The answer is 3. No: the answer is: 5.\nDone 6", "5"),
        ("the final answer is $x$.", "$x$"),
        ("#### ", ""),
        ("it is 4", None),
    ],
)
def test_the_final_answer_follows_its_mark(text, expected):
    assert final_answer(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$1,080.50, or -3.", ["1080.5", "-3"]),
        ("10-3=7", ["10", "3", "7"]),
        ("-$5 and $-5 and .5", ["-5", "-5", "1/2"]),
        ("1,2 and 1234,567 and 109,200,000", ["1", "2", "1234", "567", "109200000"]),
        ("none", []),
    ],
)
def test_numbers_are_read_exactly(text, expected):
    assert numbers(text) == [Fraction(number) for number in expected]


@pytest.mark.parametrize(
    ("text", "gold", "last", "right"),
    [
        ("48/2 = 24\n48+24 = 72\n#### 72", "72", True, True),
        ("She earns $18 every day.", "18", True, True),
        ("She has 3 and then 4", "3", True, False),
        ("3 apples, of 4", "3", False, True),
        ("#### 1080", "1,080", True, True),
        ("#### 1080.0", "1,080", True, True),
        ("#### 10.5", "10", True, False),
        ("#### none, 5", "5", True, True),
        ("#### what\n5", "5", True, True),  # without a number after the mark, the last one counts
        ("I don't know", "5", True, False),
        ("", "5", False, False),
    ],
)
def test_gsm8k_answers(text, gold, last, right):
    assert same_number(text, gold, last) == right


@pytest.mark.parametrize(
    ("text", "gold", "right"),
    [
        ("so 3.The answer is: 18", "18", True),
        ("The answer is: $18.00.", "18", True),
        ("The answer is: 50%", "50", True),
        ("The answer is 7. No, the final answer is 7", "7", False),  # written small it is no mark
        ("The answer is: 7\nThe answer is: 9\nQuestion: 5", "9", True),
        ("#### 4\nThe answer is: 5", "5", True),  # the first mark of the list, not of the text
        ("#### 20/35", "4/7", True),
        ("The final answer is: 0.5", "0.50", True),
        ("The final answer is: .5", "0.50", False),  # the point is taken for a full stop
        ("The answer is: 18 dollars", "18", False),
        ("It is 18", "18", False),
        ("The answer is:", "18", False),
        ("The answer is: 1080", "1,080", False),
        ("The answer is: 1,080", "1,080", True),
        ("The answer is: 1,080", "1080", False),
        ("The answer is: 3/0", "3", False),
        ("The answer is: 1/2/3", "1", False),
        ("The answer is: 1e999999999", "1", False),
        ("The answer is: nan", "1", False),
    ],
)
def test_a_marked_number_alone_counts_by_peft_s_rule(text, gold, right):
    assert score_marked(text, gold) == right


def written(value, rng):
    """A decimal number as texts write it."""
    text = f"{abs(value):,}" if rng.random() < 0.5 else str(abs(value))
    return ("-" if value < 0 else "") + rng.choice(["", "$"]) + text


def texts_of_numbers(count):
    rng = random.Random(0)
    words = ["so", "there are", "apples,", "and", "makes", "=", "dollars.", "\n", "each"]
    for _ in range(count):
        values = [rng.choice([rng.randint(-2_000_000, 2_000_000), rng.randint(0, 9_999) / 4]) for _ in range(4)]
        yield " ".join(f"{rng.choice(words)} {written(value, rng)}" for value in values), values


def test_the_last_number_is_that_of_lm_evals_flexible_rule():
    for text, values in texts_of_numbers(3000):
        groups = re.findall(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", text)[-1]
        theirs = re.sub(r",|\$|\.$", "", next(group for group in groups if group))
        assert numbers(text)[-1] == Fraction(theirs) == Fraction(values[-1])


def test_the_marked_number_is_that_of_lm_evals_strict_rule():
    for text, values in texts_of_numbers(3000):
        whole = f"{text}\n#### {values[0]:,}{random.Random(len(text)).choice(['', '.'])}"
        theirs = re.sub(r",|\.$", "", re.search(r"#### (\-?[0-9\.\,]+)", whole)[1])
        assert same_number(whole, theirs)
        assert not same_number(whole, str(Fraction(theirs) + 1))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"so $\boxed{\frac{1}{2}}$ and $\boxed{3}$.", "3"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\fbox{7}", "7"),
        (r"\boxed{1", None),
        (r"it is $\boxed 5$.", "5"),
        ("none", None),
    ],
)
def test_the_last_box_counts(text, expected):
    assert boxed(text) == expected


def test_boxes_are_those_of_lm_eval():
    rng = random.Random(0)

    def content(depth):
        pieces = ["x", "1", "+", r"\sqrt", "^", r"\pi", ","]
        made = [rng.choice(pieces) for _ in range(rng.randint(0, 4))]
        return "".join([*made, f"{{{content(depth - 1)}}}"] if depth and rng.random() < 0.7 else made)

    for _ in range(3000):
        text = " then ".join(rf"${content(1)}$ \boxed{{{content(3)}}}" for _ in range(rng.randint(1, 3)))
        text += rng.choice(["", ".", r" \boxed{open", " }"])
        theirs = last_boxed_only_string(text)
        assert boxed(text) == (None if theirs is None else remove_boxed(theirs))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.75", "3/4"),
        (r"-\frac{3}{4}", "-3/4"),
        (r"\dfrac34", "3/4"),
        ("10{,}000", "10000"),
        (r"\$5", "5"),
        (r"50\%", "50"),
        ("1,2", None),
        ("1,000", "1000"),
        (r"2\frac{1}{2}", None),
        (r"\frac{1}{0}", None),
        ("x", None),
        ("", None),
    ],
)
def test_exact_values(text, expected):
    assert exact_value(text) == (None if expected is None else Fraction(expected))


def test_spellings_of_rationals_agree_and_others_do_not():
    rng = random.Random(0)
    for _ in range(1000):
        a, b = rng.randint(-99, 99), rng.choice([1, 2, 4, 5, 8, 10])
        forms = [f"{a}/{b}", rf"\frac{{{a}}}{{{b}}}", str(a / b)]
        first, second = rng.sample(forms, 2)
        assert same_mathematics(first, second)
        assert not same_mathematics(first, f"{a + b}/{b}")


def test_what_hendrycks_rule_calls_equal_is_equal():
    rng = random.Random(0)
    pieces = [
        "x",
        "12",
        r"\frac12",
        r"\dfrac{1}{2}",
        r"\sqrt3",
        r"\sqrt{3}",
        "+",
        " ",
        r"\left(",
        r"\right)",
        "(",
        ")",
        "0.5",
        "k=",
    ]
    agreed = 0
    for _ in range(4000):
        first = "".join(rng.choice(pieces) for _ in range(rng.randint(1, 3)))
        second = first.replace("dfrac", "frac").replace(" ", "") if rng.random() < 0.5 else rng.choice(pieces)
        theirs = is_equiv(first, second)
        agreed += theirs
        assert same_mathematics(first, second) == (theirs or exact_value(first) == exact_value(second) is not None)
    assert 500 < agreed < 3500


@pytest.mark.parametrize(
    ("text", "gold", "right"),
    [
        (r"We get $\boxed{\dfrac{3}{4}}$.", r"\frac{3}{4}", True),
        ("The answer is: $x+1$.", "x + 1", True),
        (r"$\frac12$", "0.5", True),
        (r"\boxed{(1,2)}", "(2,1)", False),
        (r"\boxed{}", "0", False),
        ("", "0", False),
        (r"\boxed{50\%}", "50", True),
        (r"\boxed{10,000}", "10000", True),
        (r"\boxed{x=5}", "5", True),
        (r"\boxed{90^\circ}", "90", True),
    ],
)
def test_mathematics_answers(text, gold, right):
    assert score_mathematics(text, gold) == right
