r"""What a generated answer says, and whether it is right: pure functions of text.

A scorer takes the generated text and the gold answer, and says whether they agree.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction

__all__ = [
    "Scorer",
    "boxed",
    "exact_value",
    "final_answer",
    "first_keyword",
    "keyword_scorer",
    "numbers",
    "same_mathematics",
    "same_number",
    "score_letter",
    "score_marked",
    "score_mathematics",
    "score_number",
    "score_opening",
    "words",
]

Scorer = Callable[[str, str], bool]

# A sign (between digits, as in 4-3, it is an operation), digits that may be grouped by commas, decimals;
# a full stop at the end of a sentence is not part of it.
_NUMBER = re.compile(r"(?:(?<![\d)])-)?\$?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)")
# Of the first of these that a text holds, the last place counts.
_MARKS = ("The answer is: ", "The answer is ", "The final answer is: ", "The final answer is ", "#### ")
_ANSWER_IS = re.compile(r"[Tt]he (?:final )?answer is:?")


def first_keyword(text: str, keywords: Sequence[str]) -> str | None:
    """The keyword that stands first in a text, in their spelling; None where none does.

    LLM-Adapters' rule for the commonsense sets (Hu et al., 2023): also inside a word, and whatever
    is said after it. Where two start at one place, the one listed first counts.
    """
    found = re.search("|".join(map(re.escape, keywords)), text)
    return found[0] if found else None


def keyword_scorer(keywords: Sequence[str]) -> Scorer:
    """The scorer that compares the first keyword of a text with the gold one."""

    def score(text: str, gold: str) -> bool:
        return first_keyword(text, keywords) == gold

    return score


def words(text: str) -> list[str]:
    """Its runs of letters, digits and underscores, in order: what is left without blanks and punctuation."""
    return re.findall(r"\w+", text)


def score_opening(text: str, gold: str) -> bool:
    """The scorer of texts that go on after their answer: whether a text begins with the gold answer, word for word.

    Blanks and punctuation don't count (HiP-LoRA, appendix C.4); upper and lower case do. A gold answer without words is
    never met.
    """
    wanted = words(gold)
    return bool(wanted) and words(text)[: len(wanted)] == wanted


def score_letter(text: str, gold: str) -> bool:
    """The scorer of questions with options: the first of the letters A to E that stands by itself, against the gold."""
    found = re.search(r"(?<![A-Za-z])[A-E](?![A-Za-z])", text)
    return found is not None and found[0] == gold


def final_answer(text: str) -> str | None:
    """The line after the first `####`, else after the last `The answer is`, without a full stop; None without either.

    GSM8K's solutions end with the one, so that what follows is another question's; MetaMathQA's
    with the other, which reasoning may hold too.
    """
    if "####" in text:
        rest = text.split("####", 1)[1]
    else:
        marks = list(_ANSWER_IS.finditer(text))
        if not marks:
            return None
        rest = text[marks[-1].end() :]
    line = (rest.strip().splitlines() or [""])[0]
    return line.strip().removesuffix(".").strip()


def numbers(text: str) -> list[Fraction]:
    """All numbers of a text in order, exact; commas between thousands and dollar signs are part of them."""
    return [Fraction(found.replace(",", "").replace("$", "")) for found in _NUMBER.findall(text)]


def same_number(text: str, gold: str, last: bool = True) -> bool:
    """Whether the answer that a text gives is the gold number, exactly.

    The answer is the first number of `final_answer`; where there is none, the last number of the
    text, as in chain-of-thought evaluations of GSM8K.

    Args:
        text: what was generated.
        gold: a number, such as GSM8K's after `####`: `1,080`.
        last: False takes the first number of the text instead, for answers without reasoning.
    """
    marked = numbers(final_answer(text) or "")
    found = marked or numbers(text)
    return bool(found) and numbers(gold)[:1] == [found[0] if marked or not last else found[-1]]


def score_number(reasoning: bool) -> Scorer:
    """The scorer by `same_number`: of texts that end with the answer, or of answers alone."""

    def score(text: str, gold: str) -> bool:
        return same_number(text, gold, last=reasoning)

    return score


def score_marked(text: str, gold: str) -> bool:
    """The scorer of peft's comparison on MetaMathQA (method_comparison/MetaMathQA/utils.py): a marked number alone.

    What follows `The answer is` or `####`, to its line's end and without blanks and `.!?$%` round it, is held
    against the gold answer: by value where it is a decimal number or a quotient of two, else as it is written,
    which is how `1,080` counts. An answer without a mark is wrong, and so is one with a unit.
    """
    mark = next((mark for mark in _MARKS if mark in text), None)
    if mark is None:
        return False
    line = text.rpartition(mark)[2].strip().split("\n", 1)[0]
    said, wanted = (each.strip(" .!?$%") for each in (line, gold))
    value, wanted_value = _decimal_or_quotient(said), _decimal_or_quotient(wanted)
    return said == wanted if wanted_value is None else value == wanted_value


def _decimal_or_quotient(text: str) -> float | None:
    """As the nearest float, so that 20/35 is a value too; None for what is neither."""
    try:
        above, *below = (Decimal(part.strip()) for part in text.split("/"))
        return None if len(below) > 1 else float(above / below[0] if below else above)
    except ArithmeticError:  # no number, or a quotient by 0
        return None


def boxed(text: str) -> str | None:
    r"""What the last `\boxed{…}` or `\fbox{…}` of a text holds, braces matched; None without one, or if it is open.

    Where there is no such box, what follows the last `\boxed ` up to a dollar sign, as a few solutions have it.
    """
    start = max(text.rfind(r"\boxed{"), text.rfind(r"\fbox{"))
    if start < 0:
        _, unbraced, rest = text.rpartition(r"\boxed ")
        return rest.split("$", 1)[0].strip() if unbraced else None
    opening = text.index("{", start)
    depth = 0
    for end in range(opening, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[opening + 1 : end]
    return None


def exact_value(text: str) -> Fraction | None:
    r"""The rational that a text is, if it is nothing else: `0.75`, `3/4`, `-\frac{3}{4}`, `10{,}000`, `$5`, `50\%`.

    Per cent and units are not looked at, as in MATH's own rule: `50\%` is 50.
    """
    plain = re.sub(r"\\left|\\right|\\[!,;$%]|[\s$%]", "", text)
    # A digit before a fraction makes a mixed number, which is left alone.
    plain = re.sub(r"(?<!\d)\\[dt]?frac(?:\{(-?\d+)\}\{(-?\d+)\}|(\d)(\d))", r"\1\3/\2\4", plain)
    if re.fullmatch(r"-?\d{1,3}((,|\{,\})\d{3})+(\.\d+)?", plain):
        plain = re.sub(r"[{},]", "", plain)
    found = re.fullmatch(r"([+-]?)(?:\(?(-?\d+)\)?/\(?(-?\d+)\)?|(-?(?:\d+\.?\d*|\.\d+)))", plain)
    if not found:
        return None
    sign, above, below, decimal = found.groups()
    if below is not None and int(below) == 0:
        return None
    value = Fraction(decimal) if decimal is not None else Fraction(int(above), int(below))
    return -value if sign == "-" else value


def same_mathematics(first: str, second: str) -> bool:
    r"""Whether two answers to a MATH problem agree: by Hendrycks et al.'s rule, or as exact rationals.

    Their rule compares LaTeX after normalising its spelling (here lm-eval's copy of it); 0.75,
    3/4 and `\frac{3}{4}` agree only by the second, which a few answers need.
    """
    # Imported when first used, since the harness takes seconds to load.
    from lm_eval.tasks.hendrycks_math.utils import is_equiv

    if bool(is_equiv(first, second)):
        return True
    value = exact_value(first)
    return value is not None and value == exact_value(second)


def score_mathematics(text: str, gold: str) -> bool:
    r"""The scorer of MATH: the last `\boxed{…}`, or what follows `The answer is`, or the whole text, against the gold.

    Dollar signs round the answer are left out.
    """
    found = boxed(text)
    if found is None:
        found = final_answer(text)
    return same_mathematics((text if found is None else found).strip().strip("$").strip(), gold)
