"""README and docs/ as their readers take them: blocks of code, the commands in them, and code within lines."""

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAMS = ("lit-spectral", "LightningCLI", "python", "make", "torchrun", "srun", "pip", "tensorboard")


class Block(NamedTuple):
    """A block of code: where it is, what it is (sh, python, flags, …) and, if it is a file, the file's name."""

    page: str
    line: int
    kind: str
    file: str | None
    text: str

    @property
    def place(self):
        return f"{self.page}:{self.line}"


def blocks(page):
    """Fenced and indented blocks; in a list, indented lines are text."""
    found, lines, number = [], page.read_text(encoding="utf-8").splitlines(), 0
    name = str(page.relative_to(ROOT))
    while number < len(lines):
        fence = re.match(r"```(\w+)(?:\s+title=\"([^\"]+)\")?\s*$", lines[number])
        start = number + 1
        if fence:
            number = lines.index("```", start)
            found.append(Block(name, start + 1, fence[1], fence[2], "\n".join(lines[start:number]) + "\n"))
        elif lines[number].startswith("    ") and (number == 0 or not lines[number - 1].strip()):
            while number < len(lines) and (lines[number].startswith("    ") or not lines[number].strip()):
                number += 1
            text = "\n".join(line[4:] for line in lines[start - 1 : number]).strip("\n") + "\n"
            found.append(Block(name, start, _kind(text), None, text))
            continue
        number += 1
    return found


def _kind(text):
    first = next(line for line in text.splitlines() if not line.startswith("#") or line.startswith("#SBATCH"))
    if first.split()[0] in PROGRAMS:
        return "sh"
    if first.startswith(("import ", "from ")):
        return "python"
    if first.startswith("--"):
        return "flags"
    return "yaml" if re.match(r"[\w-]+:(\s|$)", first) else "text"


def commands(text):
    """The commands in a text of a shell, each as the words that the shell makes of it."""
    joined = re.sub(r"\\\n\s*", "", text).splitlines()
    lines = [line for line in joined if line.strip() and not line.startswith("#")]
    script = "".join(f"printf '%s\\0' {line}\nprintf '\\1\\0'\n" for line in lines)
    said = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, check=True).stdout
    return [words.strip("\0").split("\0") for words in said.split("\1\0")[:-1]]


def ours(words):
    """What a command hands to lit-spectral, under any of its names and whatever starts it; None for other programs."""
    for number, word in enumerate(words):
        if word in {"lit-spectral", "LightningCLI"} or words[max(0, number - 1) : number + 1] == ["-m", "lit_spectral"]:
            return words[number + 1 :]
    return None


def spans(page):
    """Code within lines, with the number of its line."""
    found, taken = [], {n for b in blocks(page) for n in range(b.line, b.line + b.text.count("\n"))}
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if number not in taken:
            found += [(number, span) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", line)]
    return found
