"""docs/methods/NAME.svg, what each method's ΔW is made of: python docs/shapes.py writes them."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path

FOLDER = Path(__file__).with_name("methods")

# Matrices are drawn in their shape, side by side on one line; text stands between them.
WIDE, THIN, THICK = 64, 12, 20
Part = tuple[str, int, int, str] | str
FROZEN, TRAINED, BOUND = "#dfe3ea", "#7fa8f0", "#f2b463"
LEGEND = {"frozen": FROZEN, "trained": TRAINED, "trained, within a bound or a subspace": BOUND}

W0: Part = ("W₀", WIDE, WIDE, FROZEN)
PARTS: dict[str, list[Part]] = {
    "lora": [W0, "+", ("L", THIN, WIDE, TRAINED), ("R", WIDE, THIN, TRAINED)],
    "fclora": [W0, "+", ("U", THIN, WIDE, TRAINED), ("σ", THIN, THIN, BOUND), ("Vᵀ", WIDE, THIN, TRAINED)],
    "hiplora": [
        *(W0, "+", ("U_k", THICK, WIDE, FROZEN), ("δ", THICK, THICK, TRAINED), ("V_kᵀ", WIDE, THICK, FROZEN)),
        *("+", ("L", THIN, WIDE, BOUND), ("R", WIDE, THIN, BOUND)),
    ],
    "hira": [W0, "+", W0, "⊙", ("L", THIN, WIDE, TRAINED), ("R", WIDE, THIN, TRAINED)],
    "stella": [W0, "+", ("U", THIN, WIDE, BOUND), ("S", THIN, THIN, TRAINED), ("Vᵀ", WIDE, THIN, BOUND)],
    "milora": [
        *(W0, "+", ("L", THIN, WIDE, TRAINED), ("R", WIDE, THIN, TRAINED)),
        *("–", ("L⁰", THIN, WIDE, FROZEN), ("R⁰", WIDE, THIN, FROZEN)),
    ],
}


def _line(parts: list[Part], top: int) -> Iterator[tuple[int, str]]:
    """Each part as SVG, with where the next one begins."""
    x = 10
    for part in parts:
        if isinstance(part, str):
            yield x + 24, f'<text x="{x + 12}" y="{top + WIDE // 2 + 5}" text-anchor="middle">{part}</text>'
            x += 24
            continue
        label, width, height, fill = part
        said = f'<text x="{x + width // 2}" y="{top + WIDE + 18}" text-anchor="middle">{escape(label)}</text>'
        shape = f'<rect x="{x}" y="{top}" width="{width}" height="{height}" fill="{fill}" stroke="#5c6675"/>'
        x += max(width, 24) + 6
        yield x, f"{shape}\n{said}"


def render(name: str) -> str:
    """The picture of one method."""
    drawn = list(_line(PARTS[name], top=10))
    width = max(drawn[-1][0] + 4, 300)
    parts = [svg for _, svg in drawn]
    used = {part[3] for part in PARTS[name] if not isinstance(part, str)}
    rows = [(said, fill) for said, fill in LEGEND.items() if fill in used]
    for number, (said, fill) in enumerate(rows):
        y = 110 + 20 * number
        parts.append(f'<rect x="10" y="{y}" width="12" height="12" fill="{fill}" stroke="#5c6675"/>')
        parts.append(f'<text x="30" y="{y + 11}" fill="#5c6675">{said}</text>')
    height = 116 + 20 * len(rows)
    body = "\n".join(parts)
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"
 font-family="system-ui, sans-serif" font-size="13" fill="#1c2430" role="img">
<title>What the adapted weight is made of</title>
<rect width="{width}" height="{height}" fill="#fff"/>
{body}
</svg>
"""


if __name__ == "__main__":
    for each in PARTS:
        (FOLDER / f"{each}.svg").write_text(render(each), encoding="utf-8")
