"""What is compared: methods, and the values that flags sweep over."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

from lit_spectral import methods
from lit_spectral.errors import InputError, nearest

__all__ = ["Variant", "alternatives", "folder_of", "pairs_of", "variants"]

_METHOD = "model.method."
# What the comparison says itself, and by what.
_NOT_HERE = {
    "model.method": "--methods",
    "seed_everything": "--seeds",
    "data.seed": "--seeds",
    "trainer.logger": "--output_folder",
    "ckpt_path": "nothing: runs go on from where they broke off",
}


# What flags of `fit` begin with.
_FLAGS = {"data", "lr_scheduler", "model", "optimizer", "trainer"}


@dataclass(frozen=True)
class Variant:
    """A method with settings, under a name that tells it from the others."""

    # The method's own name, or the one that --methods gives it as NAME=METHOD; what fronts are drawn of.
    arm: str
    method: str
    # (flag without dashes, value): those that other methods have too, and those that are its own.
    shared: tuple[tuple[str, str], ...]
    own: tuple[tuple[str, str], ...]
    # Of the shared ones, those of which there are several values.
    swept: frozenset[str]

    @property
    def name(self) -> str:
        """The arm's, and what sets this variant off from others of it, such as `FCLoRA ball=0.5 lr=1e-3`."""
        told = [*self.cell.items(), *self.own]
        return " ".join([self.arm, *(f"{flag.rsplit('.', 1)[-1]}={value}" for flag, value in told)])

    @property
    def cell(self) -> dict[str, str]:
        """Where it stands in sweeps that other methods take part in."""
        return {flag: value for flag, value in self.shared if flag in self.swept}

    def flags(self) -> list[str]:
        """For `fit`: the method before its settings."""
        pairs = [*self.shared, *self.own]
        rest = [f"--{flag}={value}" for flag, value in pairs if not flag.startswith(_METHOD)]
        settings = [f"--{flag}={value}" for flag, value in pairs if flag.startswith(_METHOD)]
        return [*rest, f"--model.method={self.method}", *settings]

    def reference(self, among: Sequence[Variant]) -> Variant:
        """What it is compared with: the first method at the same place of shared sweeps, or the first of all."""
        first = [variant for variant in among if variant.arm == among[0].arm]
        if len(first) == len(among):
            return first[0]
        here = (v for v in first if all(self.cell.get(flag, value) == value for flag, value in v.cell.items()))
        return next(here, first[0])


def folder_of(name: str) -> str:
    """What the folder of a variant's runs is called."""
    folder = re.sub(r"[^\w=.,+-]+", "_", name)[:100]  # file systems take some 255 bytes
    if folder != name.replace(" ", "_"):  # else two names may become one
        folder += f"_{hashlib.blake2b(name.encode(), digest_size=3).hexdigest()}"
    return folder


def variants(names: Sequence[str], flags: Sequence[tuple[str, str]], verb: str = "compare") -> list[Variant]:
    """All methods with all combinations of swept values.

    Args:
        names: of methods, or NAME=METHOD for one that is compared under several names with settings of
            each; each name once. The first is what the others are compared with.
        flags: as in `pairs_of`. `model.…` flags may give several values, split by commas outside of
            brackets and quotes. `model.method.X` goes to the methods that have a setting X, `NAME.X`
            to that name alone, where X is a setting or itself a whole flag, and wins.
        verb: of the study, for what is wrong.

    Raises:
        InputError: no such method, no method with such a setting, a flag that the comparison gives itself.
    """
    arms = _arms(names, verb)
    settings = {arm: {field.name for field in fields(getattr(methods, method))} for arm, method in arms.items()}
    for flag, _ in flags:
        plain = flag.partition(".")[2] if flag.partition(".")[0] in settings else flag
        # LightningCLI takes the beginning of a name for the whole, such as --seed.
        for ours in (name for name in _NOT_HERE if name == plain or ("." not in name and name.startswith(plain))):
            raise InputError(f"{verb}: --{flag} is not for the runs; give {_NOT_HERE[ours]}")
        setting = flag.removeprefix(_METHOD).split(".")[0]
        if flag.startswith(_METHOD) and not any(setting in known for known in settings.values()):
            raise InputError(f"{verb}: none of {', '.join(names)} has a setting {setting}")
    return list(dict.fromkeys(variant for arm in arms for variant in _of(arm, arms[arm], flags, settings)))


def _arms(names: Sequence[str], verb: str) -> dict[str, str]:
    """From each name in a comparison to its method."""
    arms: dict[str, str] = {}
    for given in names:
        arm, _, method = given.rpartition("=")
        arm = arm or method
        if method not in _known():
            near = nearest(method, _known())
            hint = near if "did you mean" in near else f"; there are {', '.join(_known())}"
            raise InputError(f"{verb}: there is no method {method}{hint}")
        if not re.fullmatch(r"[\w+-]+", arm) or arm in _FLAGS:
            raise InputError(f"{verb}: --methods: {arm} is no name for one; give letters, digits, +, - and _")
        if arm in arms or (arm != method and arm in _known()):
            raise InputError(
                f"{verb}: --methods has {arm} twice, or gives it to another; sweep a method's settings, as in "
                "--FCLoRA.ball none,0.5, or name it apart: LoRA LoRA+ball=LoRA --LoRA+ball.ball 0.5"
            )
        arms[arm] = method
    return arms


def _of(arm: str, method: str, flags: Sequence[tuple[str, str]], settings: dict[str, set[str]]) -> Iterator[Variant]:
    """The variants of one method under one name."""
    fixed: list[tuple[str, str]] = []  # may be repeated, as trainer.callbacks+ is
    given: dict[str, list[str]] = {}
    own = set()
    for flag, value in sorted(flags, key=lambda pair: pair[0].split(".")[0] in settings):  # its own come last, and win
        head, _, rest = flag.partition(".")
        if head in settings:
            if head != arm:
                continue
            flag = f"{_METHOD}{rest}" if rest.split(".")[0] in settings[arm] else rest
            own.add(flag)
        elif flag.startswith(_METHOD) and flag.removeprefix(_METHOD).split(".")[0] not in settings[arm]:
            continue
        if flag.startswith("model.") or flag in own:
            given[flag] = alternatives(value)
        else:
            fixed.append((flag, value))
    swept = frozenset(flag for flag, values in given.items() if len(values) > 1)
    for values in itertools.product(*given.values()):
        chosen = list(zip(given, values, strict=True))
        shared = [*fixed, *(pair for pair in chosen if pair[0] not in own)]
        swept_here = swept & {flag for flag, _ in shared}
        yield Variant(arm, method, tuple(shared), tuple(pair for pair in chosen if pair[0] in own), swept_here)


def _known() -> list[str]:
    names = (name for name in methods.__all__ if name not in {"Bound", "Method", "LowRankMethod"})
    return [name for name in names if getattr(methods, name).trains]


def pairs_of(args: Sequence[str], verb: str = "compare") -> list[tuple[str, str]]:
    """(flag without dashes, value) of `--flag value` and `--flag=value`.

    Raises:
        InputError: something else.
    """
    found, rest = [], iter(args)
    for arg in rest:
        flag, joined, value = arg.partition("=")
        if not flag.startswith("--") or (value := value if joined else next(rest, "--")).startswith("--"):
            raise InputError(f"{verb}: expected --flag value, not {arg}")
        found.append((flag[2:], value))
    return found


def alternatives(value: str) -> list[str]:
    """The parts between commas that stand outside of brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for char in value:
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        else:
            depth += (char in "[{(") - (char in ")}]")
        if char == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += char
    return parts
