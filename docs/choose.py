"""docs/choose.svg, the questions by which docs/choose.md chooses a method: python docs/choose.py writes it."""

from __future__ import annotations

from html import escape
from pathlib import Path

FILE = Path(__file__).with_name("choose.svg")

# A question, and what to take where the answer is as said; else the next one is asked.
QUESTIONS = [
    (("Is there an adapter already?",), "yes", ("mend it", "its scale first")),
    (("Does it matter what the", "backbone could do before?"), "no", ("LoRA",)),
    (("Is it trained after other tasks,", "which it must not forget?"), "yes", ("LoRA", "continual, after")),
    (("Is LoRA's rank what limits?",), "yes", ("HiRA", "at a higher rate")),
    (("Must ‖ΔW‖₂ stay below", "a number at every step?"), "yes", ("LoRA or FCLoRA", "with ball")),
]
LAST = ("FCLoRA",)

WIDTH, LEFT, RIGHT, STEP, LINE = 476, 230, 146, 92, 17
BLUE, GREY, INK = "#e8eefc", "#5c6675", "#1c2430"


def _box(x: int, y: int, width: int, lines: tuple[str, ...], fill: str, bold: bool) -> str:
    height = 22 + LINE * len(lines)
    top = y - height // 2
    parts = [f'<rect x="{x}" y="{top}" width="{width}" height="{height}" rx="6" fill="{fill}" stroke="{GREY}"/>']
    for number, line in enumerate(lines):
        weight = ' font-weight="600"' if bold and number == 0 else ""
        where = f'x="{x + width // 2}" y="{top + 24 + LINE * number}"'
        parts.append(f'<text {where} text-anchor="middle"{weight}>{escape(line)}</text>')
    return "\n".join(parts)


def _arrow(x1: int, y1: int, x2: int, y2: int, said: str) -> str:
    x, y = (x1 + 8, y1 - 6) if y1 == y2 else (x1 + 8, (y1 + y2) // 2 + 4)
    line = f'<path d="M{x1} {y1}L{x2} {y2}" stroke="{GREY}" marker-end="url(#tip)"/>'
    return f'{line}\n<text x="{x}" y="{y}" fill="{GREY}">{said}</text>'


def render() -> str:
    """The picture: questions down the left, what to take on the right; narrow enough for a telephone."""
    parts, x = [], WIDTH - RIGHT - 10
    for number, (question, answer, take) in enumerate(QUESTIONS):
        y = 46 + STEP * number
        half = (22 + LINE * len(question)) // 2
        below = (22 + LINE * len(QUESTIONS[number + 1][0] if number + 1 < len(QUESTIONS) else LAST)) // 2
        parts.append(_box(10, y, LEFT, question, "#fff", bold=False))
        parts.append(_arrow(10 + LEFT, y, x - 4, y, answer))
        parts.append(_box(x, y, RIGHT, take, BLUE, bold=True))
        other = "no" if answer == "yes" else "yes"
        parts.append(_arrow(10 + LEFT // 2, y + half, 10 + LEFT // 2, y + STEP - below - 4, other))
    parts.append(_box(10, 46 + STEP * len(QUESTIONS), LEFT, LAST, BLUE, bold=True))
    height = 46 + STEP * len(QUESTIONS) + 36
    body = "\n".join(parts)
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"
 font-family="system-ui, sans-serif" font-size="14" fill="{INK}" role="img">
<title>Which method</title>
<defs><marker id="tip" viewBox="0 0 6 6" refX="5" refY="3" markerWidth="6" markerHeight="6" orient="auto">
<path d="M0 0L6 3L0 6z" fill="{GREY}"/></marker></defs>
<rect width="{WIDTH}" height="{height}" fill="#fff"/>
{body}
</svg>
"""


if __name__ == "__main__":
    FILE.write_text(render(), encoding="utf-8")
