"""Conversations, of which the assistant's turns are learned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from lit_spectral.datamodules.columns import shown
from lit_spectral.datamodules.files import check_columns
from lit_spectral.datamodules.prompted import PromptedText
from lit_spectral.datamodules.sources import Source, name_row

from lit_spectral.errors import InputError, refusals_of

__all__ = ["ChatText"]

ROLES = ("system", "developer", "user", "assistant", "tool")


class ChatText(PromptedText):
    """Rows with a list of messages, laid out by the tokenizer's own chat template; the assistant's turns are scored.

    A message is an object with `role` (system, developer, user, assistant or tool) and `content`, a text. What
    a turn of the assistant's opens with is given; what it says, and how the template ends it, is scored; one
    that nothing comes before is not. What
    comes after the last of them is left out. Given and said are tokenised apart, as in `PromptedText`.

    Args:
        path: a file of rows (jsonl, json or parquet), of which some are held out to validate on; a folder with
            `train` and, if there is one, `validation`; or a hub id.
        messages: the column with the list.
        turns: which of the assistant's turns are scored: `all` of a conversation, or the `last` one, for templates
            that write earlier turns otherwise than the last.
        packing: as in `PromptedText`, a conversation as an example.
        too_long: as in `PromptedText`: a conversation that is `cut` loses its beginning.
        max_characters: as in `PromptedText`, of a conversation.
        empty_answer: a conversation in which the assistant says nothing is an `error`, or left out by `skip`, and
            counted.
        subset: as in `PromptedText`.
        validation_rows: as in `PromptedText`.
        batch_size: as in `PromptedText`.
        eval_batch_size: as in `PromptedText`.
        max_length: as in `PromptedText`.
        settings: of `TextDataModule`.
    """

    def __init__(
        self,
        path: str,
        messages: str = "messages",
        turns: Literal["all", "last"] = "all",
        packing: bool = False,
        too_long: Literal["cut", "skip", "error"] = "cut",
        max_characters: int | None = None,
        empty_answer: Literal["error", "skip"] = "error",
        subset: str | None = None,
        validation_rows: int = 120,
        batch_size: int = 16,
        eval_batch_size: int | None = None,
        max_length: int = 512,
        **settings: Any,
    ) -> None:
        super().__init__(
            path, prompt="", answer="", input="", template="chat", loss_on="answer", packing=packing,
            too_long=too_long, max_characters=max_characters, empty_answer=empty_answer, subset=subset,
            validation_rows=validation_rows, batch_size=batch_size, eval_batch_size=eval_batch_size,
            max_length=max_length, **settings,
        )  # fmt: skip
        self.messages = messages
        self.turns = turns

    def pieces(
        self, rows: Any, source: Source
    ) -> tuple[Any, Callable[[dict[str, Any], int], list[tuple[str, bool]]], list[int], list[int]]:
        """As in `PromptedText`: what comes before each turn of the assistant's, and the turn, in their order."""
        column, last_alone, tokenizer = self.messages, self.turns == "last", self.tokenizer
        check_columns(rows, [column], source.name)
        if not getattr(tokenizer, "chat_template", None):
            raise InputError("data: the tokenizer has no chat template; give a backbone that has learned to chat")
        for number, turns in enumerate(rows[column]):
            wrong = _wrong(turns)
            if wrong is not None:
                raise InputError(f"{name_row(source, number)}: {column} {wrong}; mend the row or leave it out")

        def render(turns: list[dict[str, str]], opens: bool) -> str:
            said = [{"role": turn["role"], "content": turn["content"]} for turn in turns]
            with refusals_of("data: the tokenizer's chat template", "mend the conversations"):
                return str(tokenizer.apply_chat_template(said, add_generation_prompt=opens, tokenize=False))

        def write(batch: dict[str, Any], i: int) -> list[tuple[str, bool]]:
            turns = batch[column][i]
            # A greeting that nobody asked for is context: templates can't open a conversation to it.
            said = [n for n, turn in enumerate(turns) if turn["role"] == "assistant" and turn["content"].strip()]
            answers = [n for n in said if n > 0]
            pieces, done = [], ""
            for n in answers[-1:] if last_alone else answers:
                given, whole = render(turns[:n], True), render(turns[: n + 1], False)
                if not (given.startswith(done) and whole.startswith(given)):
                    raise InputError(
                        "data: the tokenizer's chat template writes a turn otherwise once others follow, or opens it "
                        "otherwise to be generated, so what is to be said can't be told apart; give --data.turns last, "
                        "or PromptedText with another template"
                    )
                pieces += [(given[len(done) :], False), (whole[len(given) :], True)]
                done = whole
            return pieces

        return rows.select_columns([column]), write, [], []


def _wrong(turns: Any) -> str | None:
    """What is wrong with a conversation; None where nothing is."""
    if not isinstance(turns, list):
        return f"is {shown(turns)}, not a list of objects with role and content"
    for turn in turns:
        if not (isinstance(turn, dict) and all(isinstance(turn.get(name), str) for name in ("role", "content"))):
            return f"holds {shown(turn)}, not an object with a role and a content, both texts"
        if called := next((name for name in ("tool_calls", "function_call") if turn.get(name)), None):
            return f"has {called}, which are not read"
        if turn["role"] not in ROLES:
            return f"has the role {shown(turn['role'])}, which is none of {', '.join(ROLES)}"
    return None
