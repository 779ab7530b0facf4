"""The parser of the command line, whose mistakes are single lines, and of YAML, whose keys stand once."""

from __future__ import annotations

import importlib
import inspect
import itertools
import json
import re
import sys
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]
from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningArgumentParser
from torch.optim import Optimizer

from lit_spectral.errors import InputError, nearest
from lit_spectral.paths import config_file

__all__ = ["ConfigFile", "SettingsParser"]


class SettingsParser(LightningArgumentParser):
    """LightningCLI's, which raises InputError where it would print the usage."""

    def parse_args(self, args: Any = None, *others: Any, **options: Any) -> Any:
        """As jsonargparse's, which hands null on to the parser of a class within a class as the text None."""
        if isinstance(args, list):
            args = [re.sub("=None$", "=null", arg) for arg in _of_torch(_as_given(args))]
        return super().parse_args(args, *others, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise what is wrong, with the nearest of what would be right."""
        if not self.exit_on_error:  # a class's own, whose errors the command line's gathers
            super().error(message, ex)
        flags = [flag for action in self._actions for flag in action.option_strings]
        raise InputError(_in_short(message, flags)) from ex


def _as_given(args: list[str]) -> list[str]:
    """Values that the parser would misread as mappings of them, `--data.init_args {"prompt": TEXT}` say.

    It takes {column} in a template for YAML.
    """
    written, rest = [], iter(args)
    for arg in rest:
        flag, joined, text = arg.partition("=")
        owner, _, name = flag.rpartition(".")
        if flag in {"--data.prompt", "--data.input", "--data.answer"}:
            text = text if joined else next(rest, "--")
            if not joined and text.startswith("--"):
                raise InputError(f"{flag}: no text is given; write {flag}='TEXT'")
            arg = f"{owner}.init_args={json.dumps({name: None if text == 'null' else text})}"
        written.append(arg)
    return written


def _of_torch(args: list[str]) -> list[str]:
    """Flags in which an optimizer's short name is torch's: bitsandbytes, once imported, has others so named."""
    written: list[str] = []
    for arg in args:
        flag, joined, name = arg.rpartition("=") if "=" in arg else (written[-1] if written else "", "", arg)
        if re.fullmatch(r"--model(\.init_args)?\.optimizer(\.class_path)?", flag) and hasattr(torch.optim, name):
            arg = f"{flag}=torch.optim.{name}" if joined else f"torch.optim.{name}"
        written.append(arg)
    return written


class ConfigFile(ActionConfigFile):
    """`--config`, which finds the files that ship with this package too."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Read one of them."""
        # What has a colon is a URL, or the settings themselves.
        if ":" in values:
            file = values
        else:
            file = str(config_file(values))
            sections = {action.dest.split(".")[0] for action in parser._actions}
            if "subcommand" in sections:
                raise InputError(f"config: --config stands after the subcommand: lit-spectral fit --config {values}")
            check_yaml(Path(file), sections | {"fit", "validate", "test", "predict"})
        super().__call__(parser, namespace, file, option_string)  # type: ignore[no-untyped-call]


def check_yaml(file: Path, sections: Collection[str]) -> None:
    """InputError for a file that is no YAML of these sections, or says a key twice, with the line."""
    try:
        text = file.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        yaml.safe_load(text)  # what is YAML, but no value
    except OSError as error:
        raise InputError(f"config: {file} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"config: {file} is not text in UTF-8; give a YAML file") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InputError(f"config: {file}, line {line}: not YAML: {error.problem}") from error
    except (yaml.YAMLError, ValueError) as error:  # a character that none may have, a number of 5,000 digits
        raise InputError(f"config: {file} is not YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise InputError(f"config: {file} is nested deeper than any settings are; write them as in configs/") from error
    if not isinstance(root, yaml.MappingNode):
        raise InputError(f"config: {file} holds no settings; write sections such as `model:`, `data:` and `trainer:`")
    _check_keys(root, file, ())
    for key, section in root.value:
        if key.value not in sections:
            what = f"config: {file}, line {key.start_mark.line + 1}: there is no section {key.value}"
            raise InputError(what + nearest(str(key.value), sections))
        if key.value in {"trainer", "fit"} and not isinstance(section, yaml.MappingNode):
            raise InputError(f"config: {file}, line {key.start_mark.line + 1}: {key.value} is a section of settings")
        if key.value == "seed_everything" and section.tag.endswith(":null"):
            raise InputError(f"config: {file}, line {key.start_mark.line + 1}: seed_everything is a number or false")
        for name, _ in section.value if isinstance(section, yaml.MappingNode) else ():
            if not isinstance(name, yaml.ScalarNode) or not name.tag.endswith((":str", ":merge")):
                raise InputError(f"config: {file}, line {name.start_mark.line + 1}: a setting's name is text")


def _check_keys(node: yaml.Node, file: Path, around: tuple[yaml.Node, ...]) -> None:
    if any(node is each for each in around):
        raise InputError(
            f"config: {file}, line {node.start_mark.line + 1}: it holds itself by its anchor; write it out"
        )
    around = (*around, node)
    if isinstance(node, yaml.SequenceNode):
        for each in node.value:
            _check_keys(each, file, around)
    elif isinstance(node, yaml.MappingNode):
        seen: dict[Any, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise InputError(
                        f"config: {file}, line {line}: {key.value} stands in line {seen[key.value]} already; leave "
                        "one out"
                    )
                seen[key.value] = line
            _check_keys(value, file, around)


# What others call our settings.
_ELSEWHERE = {
    **dict.fromkeys(("lr", "learning_rate"), "model.optimizer.lr"),
    **dict.fromkeys(("rank", "r", "lora_r", "lora_rank"), "model.method.rank"),
    **dict.fromkeys(("alpha", "lora_alpha"), "model.method.alpha"),
    **dict.fromkeys(("dropout", "lora_dropout"), "model.method.dropout"),
    **dict.fromkeys(("target_modules", "lora_target_modules"), "model.method.target_modules"),
    **dict.fromkeys(("method", "peft_type"), "model.method"),
    **dict.fromkeys(("backbone", "model_name_or_path", "base_model"), "model.backbone"),
    **dict.fromkeys(("epochs", "num_epochs", "num_train_epochs", "max_epochs"), "trainer.max_epochs"),
    **dict.fromkeys(("batch_size", "per_device_train_batch_size"), "data.batch_size"),
    **dict.fromkeys(("bf16", "fp16", "precision"), "trainer.precision"),
    "accumulate_grad_batches": "trainer.accumulate_grad_batches",
    "gradient_accumulation_steps": "trainer.accumulate_grad_batches",
    "max_steps": "trainer.max_steps",
    "output_dir": "trainer.default_root_dir",
    "resume_from_checkpoint": "ckpt_path",
    "save_steps": "save_every_n_steps",
    "seed": "seed_everything",
    "warmup_steps": "model.warmup_steps",
    "weight_decay": "model.optimizer.weight_decay",
}
_KINDS = {
    "int": "a whole number",
    "float": "a finite number",
    "bool": "true or false",
    "str": "text",
    "NoneType": "null",
    "list": "a list",
    "dict": "a mapping",
    "tuple": "a list of that length",
    "Iterable": "a list",
}


def _in_short(message: str, flags: Iterable[str]) -> str:
    """A message of the parser, which has a line for each type that a value might have had, in one."""
    if match := re.match(r"unrecognized arguments: (.*)", message, re.DOTALL):
        unknown = match[1].split()[0]
        if not unknown.startswith("-"):
            return f"{unknown}: no flag stands before it; write --flag=value"
        flag = unknown.partition("=")[0]
        elsewhere = _ELSEWHERE.get(flag.strip("-"))
        return f"{flag}: there is no such flag" + (f"; give --{elsewhere}" if elsewhere else nearest(flag, flags))
    if match := re.search(r"does not accept option '([^']*)'", message):
        names = [flag.removeprefix("--") for flag in flags]
        return f"{match[1]}: there is no such setting{nearest(match[1].split('.')[0], names)}"
    path, owner, leaf = _innermost(message)
    if match := re.search(r"Option '([^']*)' is not accepted", leaf):
        if _name(owner) == Optimizer.__name__:  # the base: none is chosen
            return f"{path}.{match[1]}: no optimizer is named that has it; give --{path} torch.optim.AdamW too"
        known = _settings(owner) if owner else []
        return f"{path}.{match[1]}: {_name(owner)} has no such setting{nearest(match[1], known)}"
    if match := re.search(r"arguments are required: (.*)", leaf):
        if not path:  # a verb's
            flags = " and ".join(f"--{name.partition('.')[2] or name}" for name in match[1].split(", "))
            return f"{flags} must be given, or be in a --config; see configs/ for some"
        return f"{path}: {_name(owner)} needs {match[1]}; give --{path}.{match[1].split(',')[0]}"
    nested = re.findall(r"NestedArg\(key='[^']*', val=(?:'([^']*)'|(.*))\)$", message, re.MULTILINE)
    value = re.search(r"(?:Given value|Got value): (.*?)(?:\. Got value|$)", leaf, re.MULTILINE)
    shown = (nested[-1][0] or nested[-1][1] if nested else value[1] if value else "")[:80]
    if re.search(r"dot import path|Import path|No module named|not accessible or invalid|valid subclass", leaf):
        kind = re.findall(r"Subtypes: \[.*?<class '([\w.]+)'>", leaf)
        known = _classes(kind[-1] if kind else "", path.rpartition(".")[2])
        if shown in known:
            return f"{path}: several classes are named {shown}; write its module before it, as in torch.optim.AdamW"
        if shown in {"DoRA", "AdaLoRA", "VeRA", "OFT", "IA3", "LoHa", "LoKr"} and "Peft" in known:
            return f"{path}: {shown} is peft's; give --{path}=Peft and its settings by --{path}.config"
        if known:
            return f"{path}: there is no {shown}{nearest(shown.rpartition('.')[2], known)}"
    kinds = re.findall(r"Expected an? (?:<class '([^']+)'>|typing\.Literal\[(.*?)\]|(\w+\[[^\]]*\]))", leaf)
    wanted = [_KINDS.get(c.rpartition(".")[2], c or ch.replace("'", "") or w) for c, ch, w in kinds]
    if wanted:
        return f"{path}: {shown!r} is not {' or '.join(dict.fromkeys(wanted))}"
    lines = [line.strip(" -") for line in leaf.splitlines() if line.strip(" -")]
    if match := re.search(r"module '([\w.]+)' has no attribute '(\w+)'", message):
        return f"{path}: {match[1]} has no {match[2]}; see --help"
    if "has no attribute" in leaf or not lines:
        return f"{path}: {shown!r} is no mapping of settings" if shown else f"{path}: give settings, each by its flag"
    said = re.sub(r"\. Got value: Namespace\(.*", "", lines[0])
    return f"{path}: {said}" if path else " ".join(lines)


def _innermost(message: str) -> tuple[str, str, str]:
    """The setting at fault, the class whose it is ("" for the command line's), and what is wrong with it.

    The parser goes into each type that a value might have had; here the first that got to a class is followed.
    """
    path: list[str] = []
    owner, lines = "", message.splitlines()
    while True:
        steps = (
            (n, re.search(r"given class_path '([^']+)'|Parser key \"([^\"]+)\"", line)) for n, line in enumerate(lines)
        )
        number, match = next(((n, found) for n, found in steps if found), (0, None))
        if match is None:
            return ".".join(path), owner, "\n".join(lines)
        owner, key = match[1] or owner, match[2]
        if key and path[-1:] != [key]:
            path.append(key)
        given = [
            found[1] for line in lines if (found := re.search(r"Got value: Namespace\(class_path='([^']+)'", line))
        ]
        owner = given[0] if given else owner
        inside = _deeper(lines[number + 1 :], len(lines[number]) - len(lines[number].lstrip(" ")))
        # A line may go on with what is wrong.
        lines = [lines[number][match.end() :].lstrip(":"), *inside]


def _deeper(lines: list[str], indent: int) -> Iterator[str]:
    """The lines up to one that isn't indented deeper."""
    return itertools.takewhile(lambda line: not line.strip() or len(line) - len(line.lstrip(" ")) > indent, lines)


def _name(class_path: str) -> str:
    return class_path.rpartition(".")[2] or "it"


def _settings(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    owner = getattr(importlib.import_module(module), name)
    names = [name for each in inspect.getmro(owner)[:-1] for name in inspect.signature(each).parameters]
    return [name for name in names if name not in {"self", "args", "kwargs", "settings", "params"}]


def _classes(class_path: str, key: str) -> list[str]:
    """Names of the classes that may stand where one of this class, or of this setting, is asked for."""
    base: Any = {"optimizer": Optimizer, "callbacks": Callback}.get(key)
    module, _, name = class_path.rpartition(".")
    if base is None and module:
        base = getattr(importlib.import_module(module), name, None)
    if not isinstance(base, type) or base.__module__ == "builtins":
        return []
    found, left = [], [base]
    while left:
        each = left.pop()
        left += each.__subclasses__()
        package = sys.modules.get(each.__module__.rpartition(".")[0])
        # What a package exports is meant to be named; its bases aren't, nor what bitsandbytes brings unasked.
        if each.__module__.startswith("bitsandbytes."):
            continue
        if each is not base and not inspect.isabstract(each) and getattr(package, each.__name__, None) is each:
            found.append(each.__name__)
    return found
