"""`lit-spectral config`: a commented YAML of a method, a backbone and a task, to start from."""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
from pathlib import Path
from typing import Any

import docstring_parser
import yaml

from lit_spectral.errors import InputError, Parser, nearest
from lit_spectral.files import check_place, write_text
from lit_spectral.listing import data_modules, method_classes, task_classes

__all__ = ["render", "run"]

# Of settings that have no default: what stands there until the user writes something else.
_TO_FILL_IN: dict[str, Any] = {
    "path": "FOLDER",
    "prompt": "{instruction}\n",
    "answer": "{output}",
    "config": {"peft_type": "LORA", "r": 8, "lora_alpha": 16},
}
# Settings that are written out, since they are the first to be changed; others are comments.
_FIRST = {"rank", "task", "path", "batch_size", "max_length"}


def run(args: list[str]) -> Path | None:
    """Print it, or write it into a new file, which is returned.

    Raises:
        InputError: a name that there isn't, data that the task doesn't take, a file that is there already.
    """
    parser = Parser(
        prog="lit-spectral config",
        description="A commented YAML to start from, for `lit-spectral fit --config FILE`.",
        allow_abbrev=False,
    )
    parser.add_argument("method", metavar="METHOD", help="one of lit-spectral methods")
    parser.add_argument("backbone", metavar="BACKBONE", help="a hub id, a folder, or tiny, the built-in encoder")
    parser.add_argument("task", metavar="TASK", help="one of lit-spectral tasks")
    parser.add_argument("--data", metavar="NAME", help="one of lit-spectral data (the task's first)")
    parser.add_argument("--output", metavar="FILE", help="a new file (printed)")
    given = parser.parse_args(args)
    text = render(given.method, given.backbone, given.task, given.data)
    if given.output is None:
        print(text, end="")
        return None
    file = Path(given.output)
    if file.exists():
        raise InputError(f"config: {file} is there already; give a new file")
    check_place(file, "config: --output")
    write_text(file, text)
    print(f"config: {file}")
    return file


def render(method: str, backbone: str, task: str, data: str | None = None) -> str:
    """The YAML, with every setting of the method and the data, each explained by its docstring.

    Args:
        method: a name that `--model.method` takes.
        backbone: a hub id, a folder, or `tiny`.
        task: a name that `--model` takes.
        data: a name that `--data` takes; None for the first that the task takes.

    Raises:
        InputError: a name that there isn't, or data that the task doesn't take.
    """
    kind = _named("method", method, method_classes())
    problem: Any = _named("task", task, task_classes())
    suited = {name: each for name, each in data_modules().items() if issubclass(each, problem.data_modules)}
    if data is None:  # what is meant for any text of the kind, if there is such
        data = next((name for name, each in suited.items() if each is problem.data_modules[0]), next(iter(suited)))
    rows = _named(f"data for {task}", data, suited)
    lines = [
        f"# {(inspect.getdoc(kind) or '').partition(chr(10))[0]}",
        "# lit-spectral fit --config FILE; what is commented out is the default.",
        "seed_everything: 42",
        "trainer:",
        "  max_epochs: 3",
        "  log_every_n_steps: 10",
        "  gradient_clip_val: 1.0",
        "  # precision: bf16-mixed  # on a GPU, or a CPU with instructions for it (AVX512-BF16, AMX)",
        "  logger:  # tensorboard --logdir runs",
        "    class_path: lightning.pytorch.loggers.TensorBoardLogger",
        f"    init_args: {{save_dir: runs, name: {method.lower()}_{task.lower()}}}",
        "  callbacks:",
        "    # The best by validation loss, and the last, from which an interrupted run goes on (--ckpt_path).",
        "    - class_path: lightning.pytorch.callbacks.ModelCheckpoint",
        "      init_args: {monitor: val/loss, mode: min, filename: best}",
        "    - class_path: lightning.pytorch.callbacks.ModelCheckpoint",
        "      init_args: {filename: last, save_on_exception: true, enable_version_counter: false}",
        "model:",
        f"  class_path: {task}",
        "  init_args:",
        f"    backbone: {_value(backbone)}",
        "    method:",
        f"      class_path: {method}",
        *_settings(kind, "      "),
        "    optimizer:",
        "      class_path: torch.optim.AdamW",
        f"      init_args: {{lr: {_rate(kind)}, weight_decay: 0.0}}  # to be tuned first: try half of it, and twice",
        *_anchor(kind, problem, backbone),
        "    lr_scheduler: linear",
        "    # warmup_steps: 0.06  # a number of optimizer steps, or below 1 a fraction of them all",
        "    # gradient_checkpointing: true  # less memory, more time",
        "data:",
        f"  class_path: {data}",
        *_settings(rows, "  "),
    ]
    return "\n".join(lines) + "\n"


def _named(what: str, name: str, known: dict[str, type]) -> type:
    if name not in known:
        raise InputError(f"config: there is no {what} {name}{nearest(name, known)}")
    return known[name]


def _rate(method: type) -> str:
    """A learning rate to begin with: a bounded ΔW bears more than a free one (docs/results), all weights far less."""
    from lit_spectral.methods import FCLoRA, FullFineTuning  # as in listing: neither --help nor a mistake waits

    return "2.0e-5" if issubclass(method, FullFineTuning) else "1.0e-3" if issubclass(method, FCLoRA) else "4.0e-4"


def _anchor(method: type, task: type, backbone: str) -> list[str]:
    """What keeps the model near its backbone, if that is there without the method, and a text to do so on."""
    from lit_spectral.methods import BitFit, FullFineTuning, Peft  # as in listing: neither --help nor a mistake waits
    from lit_spectral.tasks import CausalLM, MaskedLM

    if issubclass(method, (FullFineTuning, BitFit, Peft)) or issubclass(task, MaskedLM):
        return []
    about = "forgets less at the same score (docs/results), for more time a step; 0: none, as in the papers"
    if issubclass(task, CausalLM):
        return [f"    anchor: {_value({'weight': 1.0, 'text': 'self'})}  # {about}"]
    if _is_headless(backbone):
        return ["    # anchor: {weight: 0.25}  # forgets less; but a sentence encoder, as this is, scores less by it"]
    about += " and for sentence encoders, which have no masked-language head"
    return [f"    anchor: {_value({'weight': 0.25})}  # {about}"]


def _is_headless(backbone: str) -> bool:
    """Whether an encoder that is at hand says that it comes without a masked-language head."""
    from transformers import AutoConfig

    try:
        kinds = AutoConfig.from_pretrained(backbone, local_files_only=True).architectures or []
    except (OSError, ValueError):  # on the hub, or no backbone at all, which `fit` will say
        return False
    return not any(kind.endswith(("ForMaskedLM", "ForPreTraining")) for kind in kinds)


def _settings(kind: type, indent: str) -> list[str]:
    """`init_args` of a class: those that must be given and the first ones as they are, the rest as comments."""
    about: dict[str, str] = {}
    for each in reversed(inspect.getmro(kind)[:-1]):
        found = {p.arg_name: p.description or "" for p in docstring_parser.parse(each.__doc__ or "").params}
        about |= {name: said for name, said in found.items() if not said.startswith("as in ")}
    lines = []
    for name, default in _defaults(kind).items():
        required = default is inspect.Parameter.empty
        comment = textwrap.shorten(about.get(name, "").partition(". ")[0].rstrip("."), 100, placeholder=" …")
        line = f"{name}: {_value(_TO_FILL_IN[name] if required else default)}" + (f"  # {comment}" if comment else "")
        shown = required or (name in _FIRST and default is not None)
        lines.append((shown, f"{indent}  {line}" if shown else f"{indent}  # {line}"))
    head = f"{indent}init_args:" if any(shown for shown, _ in lines) else f"{indent}# init_args:"
    return [head, *(line for _, line in sorted(lines, key=lambda each: not each[0]))]


def _defaults(kind: type) -> dict[str, Any]:
    """Of each setting of a class; data modules hand on what they don't name to those that they derive from."""
    if dataclasses.is_dataclass(kind):
        return {field.name: _default(field) for field in dataclasses.fields(kind)}
    found: dict[str, Any] = {}
    for each in inspect.getmro(kind):
        if each.__module__.startswith("lit_spectral.") and "__init__" in vars(each):
            parameters = inspect.signature(each).parameters
            named = {n: p.default for n, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
            found = {**named, **found}
            if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
                break
    return found


def _default(field: dataclasses.Field[Any]) -> Any:
    """Its value, or that there is none: an empty mapping, as of `Peft.config`, says nothing."""
    value = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    return value if value != {} and value is not dataclasses.MISSING else inspect.Parameter.empty


def _value(value: Any) -> str:
    """In YAML, on one line."""
    style = '"' if isinstance(value, str) and "\n" in value else None
    options: dict[str, Any] = {"width": 10**6, "allow_unicode": True, "sort_keys": False, "default_style": style}
    text: str = yaml.safe_dump(value, default_flow_style=True, **options)
    return text.removesuffix("\n").removesuffix("\n...")
