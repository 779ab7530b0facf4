"""SQuAD (Rajpurkar et al., 2016 and 2018): questions on a context, cut into windows."""

from __future__ import annotations

import logging
from typing import Any

import torch
from lit_spectral.datamodules.columns import as_text, short, shown
from lit_spectral.datamodules.files import check_columns, read_split
from lit_spectral.datamodules.sources import Source, name_row, source_of
from lit_spectral.datamodules.text import TextDataModule
from torch import Tensor

from lit_spectral.errors import InputError, check_at_least

__all__ = ["SQuAD"]

log = logging.getLogger(__name__)


class SQuAD(TextDataModule):
    """Questions whose answer is a span of their context, or, in v2.0, isn't there.

    A question and its context, where they are too long for one row, are several: windows that hold
    the whole question and a part of the context each. A batch holds the tokenizer's tensors and, in
    training, `start_positions` and `end_positions`: the tokens of the first answer, or 0, the
    window's first token, where the window does not hold all of it. Evaluation batches also hold
    `context` (rows, 2), the first and last token of the context, and `window`, the window's number.

    Columns are those of the hub: `id`, `context`, `question`, and `answers` with the lists `text`
    and `answer_start` (characters), both empty where there is no answer.

    Args:
        path: a hub id (`rajpurkar/squad` is v1.1), or a folder with `train` and `validation` (jsonl, json or parquet).
        version_2: whether questions may have no answer, and are scored as v2.0's script does.
        stride: tokens of the context that a window shares with the next.
        max_query_length: tokens after which a question is cut; how many were is logged.
        skip_misplaced: leave out questions with an answer that is not at its place in the context,
            and log how many, instead of refusing the file.
        batch_size: as in `TextDataModule`.
        max_length: tokens of a window.
        settings: of `TextDataModule`; the tokenizer is a fast one.
    """

    def __init__(
        self,
        path: str = "rajpurkar/squad_v2",
        version_2: bool = True,
        stride: int = 128,
        max_query_length: int = 64,
        skip_misplaced: bool = False,
        batch_size: int = 16,
        max_length: int = 384,
        **settings: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, max_length=max_length, **settings)
        check_at_least(0, stride=stride)
        check_at_least(1, max_query_length=max_query_length)
        self.path = path
        self.version_2 = version_2
        self.stride = stride
        self.max_query_length = max_query_length
        self.skip_misplaced = skip_misplaced
        # Of evaluation sets: the rows as they were read, and of each window the row and the tokens' places in it.
        self._rows: dict[str, Any] = {}
        self._places: dict[str, Any] = {}

    def tokenised(self, name: str) -> Any:
        """The windows.

        Raises:
            InputError: a column that is missing, a row that can't be used, by its place in the file, or a
                window too short to hold a question and more of the context than `stride`.
        """
        split = {"val": "validation"}.get(name, name)
        rows, source = read_split(self.path, split), source_of(self.path, split)
        labelled = self._stage() != "predict"  # the answers to new questions aren't known
        columns = ["id", "context", "question", *(["answers"] if labelled else [])]
        check_columns(rows, columns, source.name)
        texts = as_text(rows.select_columns(columns), columns[:3], source)
        texts = texts.add_column("number", list(range(len(texts))))  # by which errors find those that are kept
        usable = self._usable(texts, split, source, labelled)
        windows = self._windows(usable, split, source, labelled)
        cut = len({row for row, cut in zip(windows["row"][:], windows["question_cut"][:], strict=True) if cut})
        for count, what in (
            (len(rows) - len(usable), "with an answer that is not at its place in the context are left out"),
            (cut, f"are cut to {self.max_query_length} tokens"),
        ):
            if count:
                log.warning("%s: %d of %d questions %s", source.name, count, len(rows), what)
        log.info("%s: %d questions in %d windows", source.name, len(usable), len(windows))
        windows = windows.remove_columns("question_cut")
        if name == "train":
            return windows.remove_columns("row")
        ids = list(usable["id"])
        if len(ids) > len({*ids}):
            first = {each: row for row, each in reversed([*enumerate(ids)])}
            row = next(row for row, each in enumerate(ids) if first[each] < row)
            raise InputError(
                f"{name_row(source, usable['number'][row])}: id {shown(ids[row])} is that of an earlier question, and "
                "predictions are told apart by it; give each its own"
            )
        self._rows[name] = usable
        places = ["row", "token_starts", "token_ends"]
        self._places[name] = windows.select_columns(places)
        return windows.remove_columns(places).add_column("window", list(range(len(windows))))

    def question_of(self, name: str) -> Tensor:
        """The row of each window's question in an evaluation set, (windows,)."""
        return torch.tensor(self._places[name]["row"][:])

    def questions(self, name: str, rows: Tensor) -> dict[str, list[Any]]:
        """`id` of some rows of an evaluation set, and `answers`, a list of texts each, unless they aren't known."""
        found: dict[str, list[Any]] = self._rows[name].remove_columns(["context", "question", "number"])[rows.tolist()]
        return {name: [v["text"] for v in values] if name == "answers" else values for name, values in found.items()}

    def texts(self, name: str, windows: Tensor, first: Tensor, last: Tensor) -> list[str]:
        """What stands in the context from token `first` to token `last` of windows of an evaluation set.

        All three are (N,).
        """
        places = self._places[name][windows.tolist()]
        contexts = self._rows[name].select_columns("context")[places["row"]]["context"]
        spans = zip(contexts, places["token_starts"], places["token_ends"], first.tolist(), last.tolist(), strict=True)
        # Some tokenizers count the blank before a word as part of it.
        return [context[starts[i] : ends[j]].strip() for context, starts, ends, i, j in spans]

    def _usable(self, rows: Any, split: str, source: Source, labelled: bool) -> Any:
        """The rows without those to be left out."""
        version_2, skip_misplaced = self.version_2, self.skip_misplaced

        # All in one function, since datasets finds what it has cached by the code of this one alone.
        def usable(row: dict[str, Any], number: int) -> bool:
            def refuse(what: str) -> InputError:
                return InputError(f"{name_row(source, number)}: {what}")

            for column in ("context", "question"):
                if not row[column].strip():
                    raise refuse(f"{column} is empty; mend the row or leave it out")
            if not labelled:
                return True
            answers = row["answers"]
            lists = answers if isinstance(answers, dict) else {}
            if not all(key in lists and isinstance(lists[key] or [], list) for key in ("text", "answer_start")):
                raise refuse(
                    f"answers is {shown(answers)}, not the lists text and answer_start; "
                    "give both, empty where there is no answer"
                )
            texts, starts = answers["text"] or [], answers["answer_start"] or []
            if len(texts) != len(starts):
                raise refuse(f"{len(texts)} answers (text) have {len(starts)} places (answer_start); give one each")
            if not texts and not version_2:
                raise refuse("it has no answer; give --data.version_2 true")
            for text, start in zip(texts, starts, strict=True):
                # No context has a place of more digits, and int takes none of some thousands.
                known = isinstance(text, str) and text.strip() and str(start).isdecimal() and len(str(start)) < 19
                if not known or not row["context"].startswith(text, int(start)):
                    if skip_misplaced:
                        return False
                    raise refuse(
                        f"the answer {shown(text)} is not at character {short(str(start))} of its context; "
                        "mend it, or give --data.skip_misplaced true"
                    )
            return True

        kept = rows.filter(usable, with_indices=True, desc=f"checking {split}")
        if len(kept) == 0:
            raise InputError(f"{source.name}: no row has its answers at their places in the context; mend answer_start")
        return kept

    def _windows(self, rows: Any, split: str, source: Source, labelled: bool) -> Any:
        """Rows of the tokenizer's columns and, of each window, `row`, `context` and what else there is to know."""
        tokenizer, longest, stride, longest_query = self.tokenizer, self._longest, self.stride, self.max_query_length
        if not tokenizer.is_fast:
            raise InputError("data.tokenizer: it is a slow one, which tells no token's place; give a fast one")
        room = longest - longest_query - tokenizer.num_special_tokens_to_add(pair=True)
        if room <= stride:
            raise InputError(
                f"data.max_length: a window of {longest} tokens has {room} left beside a question of {longest_query}, "
                f"and needs more than the stride of {stride}; give a smaller --data.stride or --data.max_query_length"
            )
        options = {"truncation": "only_second", "max_length": longest, "stride": stride}
        options |= {"return_overflowing_tokens": True, "return_offsets_mapping": True}
        training = split == "train"

        # All in one function, since datasets finds what it has cached by the code of this one alone.
        def encode(batch: dict[str, list[Any]], numbers: list[int]) -> dict[str, Any]:
            # A blank in front of a question is a token of its own for some tokenizers.
            questions = [question.strip() for question in batch["question"]]
            alone = tokenizer(questions, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            long = [len(tokens) > longest_query for tokens in alone["offset_mapping"]]
            for i, tokens in enumerate(alone["offset_mapping"]):
                if long[i]:
                    questions[i] = questions[i][: tokens[longest_query - 1][1]]
            encoded = tokenizer(questions, batch["context"], **options)
            owners, tokens_of = (encoded.pop(key) for key in ("overflow_to_sample_mapping", "offset_mapping"))
            contexts, spans = [], []
            for window, (owner, tokens) in enumerate(zip(owners, tokens_of, strict=True)):
                parts = encoded.sequence_ids(window)
                if 1 not in parts:
                    row = name_row(source, batch["number"][owner])
                    raise InputError(f"{row}: its context has no token that the model knows; leave it out")
                first, last = parts.index(1), len(parts) - 1 - parts[::-1].index(1)
                contexts.append([first, last])
                spans.append((0, 0))
                if labelled and batch["answers"][owner]["text"]:
                    text, start = batch["answers"][owner]["text"][0], int(batch["answers"][owner]["answer_start"][0])
                    begin, end = start + len(text) - len(text.lstrip()), start + len(text.rstrip())
                    inside = [i for i in range(first, last + 1) if tokens[i][1] > begin and tokens[i][0] < end]
                    if inside and tokens[first][0] <= begin and end <= tokens[last][1]:
                        spans[-1] = (inside[0], inside[-1])
            found = dict(encoded) | {"row": [numbers[i] for i in owners], "question_cut": [long[i] for i in owners]}
            if labelled:
                found |= {"start_positions": [a for a, _ in spans], "end_positions": [b for _, b in spans]}
            if not training:
                found |= {"context": contexts}
                found |= {"token_starts": [[a for a, _ in tokens] for tokens in tokens_of]}
                found |= {"token_ends": [[b for _, b in tokens] for tokens in tokens_of]}
            return found

        # A tokenizer remembers how it last cut and padded; datasets would take it for another one.
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        described = {"desc": f"tokenising {split}", "remove_columns": rows.column_names}
        return rows.map(encode, batched=True, with_indices=True, **described)
