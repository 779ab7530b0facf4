"""How a prompt, its input and its answer are laid out as one text: templates by name."""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import Any, Literal, get_args

from lit_spectral.errors import InputError, refusals_of

__all__ = ["TEMPLATES", "Layout", "Template", "layout", "parse"]

Template = Literal["plain", "alpaca", "llm-adapters", "chat", "chat-eos"]
# From prompt, input ("" for none) and answer to what is given and what is to be said.
Layout = Callable[[str, str, str], tuple[str, str]]

_TASK = "Below is an instruction that describes a task"
_WITH_INPUT = f"{_TASK}, paired with an input that provides further context. Write a response that appropriately"
_INDENT = " " * 16  # LLM-Adapters' prompts keep the indentation of the source they stand in

# Without and with an input. Alpaca: Taori et al., 2023; LLM-Adapters (Hu et al., 2023): the prompts of its evaluation.
TEMPLATES: dict[str, tuple[str, str]] = {
    "plain": ("{prompt}", "{prompt}\n{input}"),
    "alpaca": (
        f"{_TASK}. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{prompt}\n\n### Response:",
        f"{_WITH_INPUT} completes the request.\n\n"
        "### Instruction:\n{prompt}\n\n### Input:\n{input}\n\n### Response:",
    ),
    "llm-adapters": (
        f"{_TASK}. Write a response that appropriately completes the request. \n\n"
        f"{_INDENT}### Instruction:\n{_INDENT}{{prompt}}\n\n{_INDENT}### Response:\n{_INDENT}",
        f"{_WITH_INPUT} completes the request.\n\n{_INDENT}### Instruction:\n{_INDENT}{{prompt}}\n\n"
        f"{_INDENT}### Input:\n{_INDENT}{{input}}\n\n{_INDENT}### Response:\n{_INDENT}",
    ),
}


def parse(name: str, text: str) -> list[tuple[str, str | None]]:
    """A text with columns in braces, as pairs of literal text and the column that follows it; None where none does.

    Raises:
        InputError: braces that hold no column's name, or a backslash and an n for a line's end; `name` says where.
    """
    try:
        fields = list(string.Formatter().parse(text))
    except ValueError as error:
        raise InputError(f"{name}: {text!r}: {error}; a column is {{column}}, a brace {{{{ or }}}}") from None
    for literal, column, specification, conversion in fields:
        if "\\n" in literal:
            raise InputError(
                f"{name}: {text!r} holds a backslash and an n; for a new line write $'…\\n' in the shell, "
                'and "…\\n" in double quotes in YAML'
            )
        if column is not None and (not column or specification or conversion):
            raise InputError(f"{name}: {text!r}: between braces stands the name of a column and nothing else")
    return [(literal, column) for literal, column, _, _ in fields]


def layout(template: Template, tokenizer: Any) -> Layout:
    """The function that lays out one example.

    Args:
        template: a name in `TEMPLATES`, or `chat`: the tokenizer's own, with prompt and input as the
            user's turn and the answer as the assistant's; it writes its special tokens itself. Of
            `chat-eos` it is what is given alone, and the answer is left as it is.
        tokenizer: of the backbone; its template is used by these two alone.

    Raises:
        InputError: no such template, or a tokenizer without one for the last two; when called, a chat
            template that refuses what it is given or, for `chat`, opens an answer unlike one that is given.
    """
    if template not in get_args(Template):
        raise InputError(f"data.template: there is no {template}; there are {', '.join(get_args(Template))}")
    if template in TEMPLATES:
        without, with_input = TEMPLATES[template]

        def written(prompt: str, given: str, answer: str) -> tuple[str, str]:
            return (with_input if given.strip() else without).format(prompt=prompt, input=given), answer

        return written

    if not getattr(tokenizer, "chat_template", None):
        raise InputError("data.template: the tokenizer has no chat template; give alpaca, llm-adapters or plain")

    def spoken(prompt: str, given: str, answer: str) -> tuple[str, str]:
        turns = [{"role": "user", "content": f"{prompt}\n{given}" if given.strip() else prompt}]
        with refusals_of("data.template: the tokenizer's chat template", "give alpaca, llm-adapters or plain"):
            opening = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
            if template == "chat-eos":
                return opening, answer
            whole = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": answer}], tokenize=False)
        if not whole.startswith(opening):
            raise InputError(
                "data.template: the tokenizer's chat template opens an answer to be generated unlike one that is "
                "given, so what is to be said can't be told apart; give alpaca, llm-adapters or plain"
            )
        return opening, whole[len(opening) :]

    return spoken
