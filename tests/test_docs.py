"""What README and docs/ tell readers to type is understood by what they type it to."""

import argparse
import contextlib
import inspect
import io
import re
import runpy
import sys
from dataclasses import fields

import pytest
import yaml
from doc_pages import PAGES, ROOT, blocks, commands, ours, spans
from lightning.pytorch import Trainer

from lit_spectral import cli, datamodules, methods, tasks
from lit_spectral.comparison import command as compare
from lit_spectral.comparison.variants import pairs_of, variants
from lit_spectral.continual import command as continual
from lit_spectral.continual.stages import named_stages, split_how
from lit_spectral.editing import command as edit
from lit_spectral.lightning_cli import SpectralCLI
from lit_spectral.terminal import VERBOSE
from lit_spectral.verbs import LIGHTNING, VERBS

CONFIG = "configs/lora_roberta_mrpc.yaml"
# What stands for something of the reader's that the parser looks at.
STAND_INS = {"METHOD": "LoRA", "RATE": "1e-3", "SEED": "0"}
STAND_INS |= dict.fromkeys(("CONFIG", "config.yaml", "study.yaml", "reviews.yaml"), CONFIG)
# Their commands are run (test_guides.py).
RUN = [page for page in PAGES if page.parent.name == "guides"]
COMMANDS = {
    " ".join(words): words
    for page in PAGES
    if page not in RUN
    for block in blocks(page)
    for words in commands(block.text if block.kind in {"sh", "flags"} else "")
    for words in [words if block.kind == "sh" else ["lit-spectral", "fit", *words]]
}
IN_LINES = {
    f"{page.relative_to(ROOT)}:{line} {span[:60]}": span
    for page in PAGES
    for line, span in spans(page)
    if re.match(rf"(lit-spectral |make |--\w|({'|'.join([*LIGHTNING, *VERBS])}) (…|--|[A-Z]+\b))", span)
}
# Flags and scripts of others that pages speak of: vLLM's, PEFT-Arena's.
ELSEWHERE = {"--enable-lora", "--lora-modules", "run.py"}


def is_target(name):
    """Whether make knows it."""
    return re.search(rf"^{name}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


class Parsed(BaseException):
    """Raised where a command has been understood, before it does anything."""


def then_stop(parse):
    """A parser's method that raises Parsed once it has done its work."""

    def parsed(*args, **kwargs):
        parse(*args, **kwargs)
        raise Parsed

    return parsed


@pytest.fixture
def understand(monkeypatch, capsys):
    """Have what a command names parse it, as far as goes without files, network or time."""
    parsed = then_stop(argparse.ArgumentParser.parse_args)

    def run(words):
        words = [STAND_INS.get(word, word) for word in words]
        words = [CONFIG if word == "…" and words[n - 1] == "--config" else word for n, word in enumerate(words)]
        words = [word for n, word in enumerate(words) if word != "…" or words[n - 1] == "--ckpt_path"]
        program, *rest = words
        if (given := ours(words)) is not None:
            verb(*given)
        elif program == "make":
            assert is_target(rest[0])
        elif program == "python" and rest[0] == "-m":
            monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
            monkeypatch.setattr(sys, "argv", rest[1:])
            with pytest.raises(Parsed):
                runpy.run_module(rest[1], run_name="__main__")
        elif program == "python":
            assert rest[0] in ELSEWHERE or (ROOT / rest[0]).is_file()
        else:
            assert program in {"pip", "tensorboard"}

    def verb(name, *flags):
        named = {flag.partition("=")[0] for flag in flags}
        base = [] if named & {"--config", "--model", "--help"} else [f"--config={CONFIG}"]
        if name == "--help":
            with pytest.raises(SystemExit):
                cli.main([name])
        elif name in LIGHTNING:
            with pytest.raises(Parsed):
                cli.run([name, *base, *flags])
        elif name == "edit" and "--make" in flags:
            edit.parse([*flags])
        elif name in {"compare", "continual", "edit"}:
            parse = {"compare": compare._parse, "continual": continual.parse, "edit": edit.parse}[name]
            given, rest = parse([*([] if name == "continual" else base), *flags])
            pairs, configs = pairs_of(rest), [CONFIG] if name == "continual" else given.config
            if name == "continual":
                assert len(named_stages(given.stages)) > 1
                pairs, _ = split_how(pairs, given.methods, given.how)
            told = [variant.flags() for variant in variants(given.methods, pairs)]
            # Methods that are given the same flags are understood alike.
            each = {tuple(flag for flag in flags if not flag.startswith("--model.method=")): flags for flags in told}
            for flags in each.values():
                with pytest.raises(Parsed):
                    SpectralCLI([*(f"--config={file}" for file in configs), *flags], run=False)
        else:
            monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
            with pytest.raises(Parsed):
                VERBS[name].run([*flags])

    monkeypatch.setattr(SpectralCLI, "parse_arguments", then_stop(SpectralCLI.parse_arguments))
    monkeypatch.chdir(ROOT)
    return run


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_every_command_is_understood(understand, words):
    understand(words)


def parameters(classes):
    """Of the classes and what they inherit from."""
    mro = {each for kind in classes if inspect.isclass(kind) for each in inspect.getmro(kind)[:-1]}
    return {name for each in mro for name in inspect.signature(each).parameters}


@pytest.fixture(scope="module")
def named():
    """Names of flags: those that `--help` of each verb shows, all with benchmarks', and of what stands behind a dot."""
    shown = {}
    for name in (*LIGHTNING, *VERBS):
        with contextlib.redirect_stdout(io.StringIO()) as said, pytest.raises(SystemExit):
            cli.main([name, "--help", "--verbose"])
        shown[name] = {*re.findall(r"--[\w-]+", said.getvalue()), "--print_config", VERBOSE}
    theirs = {
        flag for file in (ROOT / "benchmarks").glob("*.py") for flag in re.findall(r'"(--\w+)"', file.read_text())
    }
    method = {field.name for name in methods.__all__ if name != "Bound" for field in fields(getattr(methods, name))}
    found = {"method": method | {"help"}, "trainer": parameters([Trainer])}
    found |= {"model": parameters(vars(tasks).values()), "data": parameters(vars(datamodules).values())}
    found |= {f"--{verb}": flags for verb, flags in shown.items()}
    return found | {"": theirs.union(ELSEWHERE, *shown.values())}


@pytest.mark.parametrize("span", IN_LINES.values(), ids=IN_LINES)
def test_what_stands_within_a_line_names_what_there_is(named, span):
    program, *rest = span.split()
    if program == "make":
        assert is_target(rest[0])
    if program == "lit-spectral":
        assert rest[0] in {*LIGHTNING, *VERBS, "--help"}
    for flag in re.findall(r"(?<![\w-])--[\w.+-]*\w", span):
        first, *path = flag.strip("-").split(".")
        if not path:
            assert flag in named[f"--{rest[0]}" if program == "lit-spectral" and flag != rest[0] else ""]
        elif path[0] == "method":
            assert path[1:] == [] or path[1] in named["method"]
        elif first in named:
            assert path[0] in named[first] | {"help"}
        else:  # of compare, continual and edit: a method's, or one that --methods has named
            assert path[0] in named["method"] | {"model", "X", "how"}


CODE = [block for page in PAGES for block in blocks(page) if block.kind in {"python", "yaml"}]


@pytest.mark.parametrize("block", CODE, ids=[block.place for block in CODE])
def test_python_and_yaml_are_that(block):
    if block.kind == "python":
        compile(block.text, block.place, "exec")
    else:
        assert isinstance(yaml.safe_load(block.text), dict)
