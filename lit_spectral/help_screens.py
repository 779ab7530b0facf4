"""What `--help` shows: a screen of the flags that are given most, without loading what parses them all."""

from __future__ import annotations

from lit_spectral.terminal import VERBOSE
from lit_spectral.verbs import LIGHTNING, VERBS

__all__ = ["FLAGS", "of_all_verbs", "of_lightning"]

# Of LightningCLI's verbs; a flag that only some have names them.
FLAGS: dict[str, tuple[str, tuple[str, ...]]] = {
    "--config FILE": ("settings: a YAML of yours, or of lit-spectral configs", ()),
    "--ckpt_path FILE": ("go on from a checkpoint, or measure one", ()),
    "--adapter SOURCE": (
        "in place of it: an adapter of peft's, or fine-tuned weights",
        ("validate", "test", "predict"),
    ),
    "--seed_everything N": ("of all that is random", ()),
    "--save_every_n_steps N": ("keep last.ckpt every so many optimizer steps", ("fit",)),
    "--model TASK": ("one of lit-spectral tasks", ()),
    "--model.backbone NAME": ("a hub id, a folder, or tiny, the built-in encoder", ()),
    "--model.method METHOD": ("one of lit-spectral methods", ()),
    "--model.method.rank N": ("and its other settings: --model.method.help METHOD", ()),
    "--model.method.target_modules [A,B]": ("which linear maps, by the ends of their paths", ()),
    "--model.method.ball BOUND": ("an exact bound on ‖ΔW‖₂: a number, q1 to q4, …", ()),
    "--model.optimizer.lr X": ("the learning rate", ("fit",)),
    "--model.warmup_steps X": ("a number of steps, or below 1 a fraction of them", ("fit",)),
    "--model.dtype NAME": ("of the backbone's weights: float32, bfloat16, auto, …", ()),
    "--model.quantization NAME": ("nf4 or int8", ()),
    "--data NAME": ("one of lit-spectral data", ()),
    "--data.path FOLDER": ("local data, or a hub id", ()),
    "--data.batch_size N": ("rows at a time", ()),
    "--data.max_length N": ("tokens of a row", ()),
    "--trainer.max_epochs N": ("", ("fit",)),
    "--trainer.max_steps N": ("optimizer steps; -1 for no bound", ("fit",)),
    "--trainer.accumulate_grad_batches N": ("batches of an optimizer step", ("fit",)),
    "--trainer.precision NAME": ("32-true, bf16-mixed, bf16-true, …", ()),
    "--trainer.devices N": ("GPUs, or processes", ()),
    "--trainer.strategy NAME": ("ddp, fsdp2, …", ()),
    "--trainer.default_root_dir FOLDER": ("where logs and checkpoints go, without a logger's own place", ()),
    "--print_config": ("print all settings as YAML, and stop", ()),
}


def of_lightning(verb: str) -> str:
    """The screen of `fit`, `validate`, `test` or `predict`."""
    shown = {flag: about for flag, (about, verbs) in FLAGS.items() if not verbs or verb in verbs}
    about = LIGHTNING[verb]
    lines = [f"usage: lit-spectral {verb} --config FILE [--flag VALUE ...]", "", f"{about[0].upper()}{about[1:]}.", ""]
    lines += ["Every setting is a flag, or a line of the config; flags win. The commonest:"]
    lines += [f"  {flag:<36}{about}".rstrip() for flag, about in shown.items()]
    lines += ["", "more:"]
    lines += [f"  lit-spectral {verb} --help {VERBOSE}", "  lit-spectral methods, tasks, data, configs"]
    lines += [f"  lit-spectral {verb} --model.help TASK, --model.method.help METHOD, --data.help NAME"]
    lines += ["  lit-spectral config METHOD BACKBONE TASK prints a config to start from"]
    lines += [f"  {VERBOSE} with any subcommand shows all that libraries say"]
    return "\n".join(lines)


def of_all_verbs() -> str:
    """The screen of `lit-spectral --help`."""
    lines = [
        "usage: lit-spectral SUBCOMMAND ...",
        "",
        "Spectral parameter-efficient fine-tuning of language models.",
        "",
    ]
    lines += [f"subcommands, each with --help, and {VERBOSE} to see all that libraries say:"]
    about = {**LIGHTNING, **{name: verb.about for name, verb in VERBS.items()}}
    width = max(map(len, about)) + 1
    return "\n".join([*lines, *(f"  {name:<{width}}{line}" for name, line in about.items())])
