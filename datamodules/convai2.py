"""Persona-grounded dialogue: ConvAI2, in which only the speaker's own persona is known."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lit_spectral.datamodules.answered import AnsweredText
from lit_spectral.datamodules.columns import shown
from lit_spectral.datamodules.files import check_columns, read_rows, read_split
from lit_spectral.datamodules.plain_text import read_text
from lit_spectral.datamodules.sources import Source, name_row, source_of

from lit_spectral.errors import InputError
from lit_spectral.scoring.texts import BERTScore, bleu, find_wordnet, meteor, rouge_l

__all__ = ["ConvAI2"]

log = logging.getLogger(__name__)

REPLY = "Give your next reply in this conversation. Stay true to who you are."
PERSONA = "your persona:"
_Conversation = list[tuple[int, dict[str, str]]]  # replies, each with the number of the row that it was in


class ConvAI2(AnsweredText):
    """ConvAI2 (Dinan et al., 2019): each reply of a speaker, given its persona and the conversation before.

    The self-persona setting of HiRA (§5.1): 17,878 conversations to train on, and the 1,000 of the
    validation split to test on. To validate on, conversations of the training split are held out
    until `validation_rows` replies are. Prompts are ours. Logged, all in [0, 1]: BLEU, ROUGE-L, and
    where what they need is given, METEOR and BERTScore; HiRA reports them times 100.

    Args:
        path: a hub id; the file `personachat_self_original.json` (`train` and `valid`); a folder
            with `train` and `validation` (jsonl, json or parquet), columns `personality` and
            `utterances` (of `history` and `candidates`, the last of which is the reply), or, a reply
            a row, `personality`, `history` and `candidates`; or a folder with ParlAI's `train_self_original*.txt` and
            `valid_self_original*.txt`.
        nltk_data: a folder of nltk's data with `corpora/wordnet`, for METEOR; None for nltk's own folders.
        bert_score_model: an encoder's folder or hub id, for BERTScore; its authors take `roberta-large`.
        bert_score_layer: whose states are compared.
        max_new_tokens: as in `AnsweredText`.
        settings: of `AnsweredText`.
    """

    def __init__(
        self,
        path: str = "AlekseyKorshuk/persona-chat",
        nltk_data: str | None = None,
        bert_score_model: str | None = None,
        bert_score_layer: int = 17,
        max_new_tokens: int = 64,
        **settings: Any,
    ) -> None:
        super().__init__(path, max_new_tokens, **settings)
        self.nltk_data = nltk_data
        self._sources: dict[str, Source] = {}
        self._with_meteor = False
        self._bert_score: BERTScore | None = None
        self.bert_score_model = bert_score_model
        self.bert_score_layer = bert_score_layer

    @property
    def test_sets(self) -> list[str]:
        """`convai2`."""
        return ["convai2"]

    def setup(self, stage: str) -> None:
        """Read the splits; what can't be measured for want of a file is said, before anything is generated."""
        if stage == "test" and "convai2" not in self.splits:  # once, though setup comes before and after processes part
            self._with_meteor = find_wordnet(self.nltk_data)
            if not self._with_meteor:
                log.warning("convai2: without METEOR, which needs WordNet; give --data.nltk_data")
            if self.bert_score_model is None:
                log.warning("convai2: without BERTScore, which needs an encoder; give --data.bert_score_model")
            else:
                self._bert_score = BERTScore(self.bert_score_model, self.bert_score_layer)
        super().setup(stage)

    def has_validation(self) -> bool:
        """Always, since whole conversations are held out here."""
        return True

    def rows(self, split: str) -> Any:
        """Replies to train on, or those of the conversations that are held out."""
        source, conversations = self._read("train")
        random.Random(self.seed).shuffle(conversations)
        held_out, replies = 0, 0
        while replies < self.validation_rows and held_out < len(conversations):
            held_out += 1
            replies += len(conversations[-held_out])
        chosen = conversations[:-held_out] if split == "train" else conversations[-held_out:]
        if not chosen:
            raise InputError(
                f"data.path: {self.path} has {len(conversations)} conversations of {replies} replies to train on, of "
                f"which {self.validation_rows} can't be held out; give more, or a smaller --data.validation_rows"
            )
        if split != "train":
            total = sum(map(len, conversations))
            log.info("%s: %d of %d training replies are held out to validate on", self.path, replies, total)
        self._sources[split], rows = _used(source, chosen)
        return rows

    def test_rows(self, name: str) -> Any:
        """Replies of the validation split."""
        _, rows = _used(*self._read("validation"))
        return rows.rename_column("output", "answer")

    def source(self, split: str) -> Source:
        """The training split's file, and the row that each reply was in."""
        return self._sources[split]

    def score_answers(self, name: str, answers: list[dict[str, Any]], folder: Path | None) -> dict[str, float]:
        """BLEU and ROUGE-L, METEOR and BERTScore where they can be had."""
        texts = [" ".join(answer["text"].split()) for answer in answers]
        golds = [answer["gold"] for answer in answers]
        scores = {"bleu": bleu(texts, golds), "rouge_l": rouge_l(texts, golds)}
        if self._with_meteor:
            scores["meteor"] = meteor(texts, golds)
        if self._bert_score is not None:
            device = self.trainer.strategy.root_device if self.trainer else "cpu"
            found = self._bert_score(texts, golds, device)
            scores |= {f"bert_{part}": value for part, value in found.items()}
        return scores

    def _read(self, split: str) -> tuple[Source, list[_Conversation]]:
        """The conversations of a split that have replies, and where they come from."""
        path = Path(self.path).expanduser()
        part = {"train": "train", "validation": "valid"}[split]  # as both files that are no rows have it
        if path.is_dir() and any(path.glob("*_self_original*.txt")):
            texts = sorted(path.glob(f"{part}_self_original*.txt"))
            if not texts:
                raise InputError(f"data.path: {path} has no {part}_self_original.txt; add it")
            source = Source(str(texts[0]), (texts[0],))
            conversations = _parlai(source)
        elif path.is_file():
            # Rows under a key have no lines of their own.
            source = Source(f"{path}, {part}")
            conversations = _of_rows(read_rows(self.path, field=part), source)
        else:
            source = source_of(self.path, split, self.subset)
            conversations = _of_rows(read_split(self.path, split, self.subset), source)
        found = [conversation for conversation in conversations if conversation]
        if not found:
            raise InputError(f"{source.name} holds no replies; give a file with utterances")
        return source, found


def _used(source: Source, conversations: list[_Conversation]) -> tuple[Source, Any]:
    """The replies of some conversations as rows, and where they come from."""
    import datasets

    replies = [reply for conversation in conversations for reply in conversation]
    rows = datasets.Dataset.from_list([reply for _, reply in replies])
    return source._replace(numbers=[number for number, _ in replies]), rows


def _of_rows(rows: Any, source: Source) -> Iterator[_Conversation]:
    if "utterances" in rows.column_names:
        check_columns(rows, ["personality"], source.name)
        for number, row in enumerate(rows):
            turns = row["utterances"]
            if not isinstance(turns, list):
                raise InputError(
                    f"{name_row(source, number)}: utterances is {shown(turns)}, not a list; "
                    "mend the row or leave it out"
                )
            yield [(number, _checked(row["personality"], turn, source, number)) for turn in turns]
        return
    check_columns(rows, ["personality", "history", "candidates"], source.name)
    conversation: _Conversation = []
    before: dict[str, Any] = {}
    for number, row in enumerate(rows):
        reply = _checked(row["personality"], row, source, number)
        # A conversation goes on while its history grows.
        if before and (row["personality"] != before["personality"] or len(row["history"]) <= len(before["history"])):
            yield conversation
            conversation = []
        conversation.append((number, reply))
        before = row
    yield conversation


def _checked(persona: Any, turn: Any, source: Source, number: int) -> dict[str, str]:
    """The reply of a row; InputError where it isn't one."""
    turn = turn if isinstance(turn, dict) else {}
    history, candidates = turn.get("history"), turn.get("candidates")
    wrong = None
    for name, texts in (("personality", persona), ("history", history), ("candidates", candidates)):
        if wrong is None and not (isinstance(texts, list) and all(isinstance(text, str) for text in texts)):
            wrong = f"{name} is {shown(texts)}, not a list of texts"
    if wrong is None and not (candidates and candidates[-1].strip()):
        wrong = "the last of its candidates, the reply, is empty"
    if wrong is not None:
        raise InputError(f"{name_row(source, number)}: {wrong}; mend the row or leave it out")
    return _reply(persona, history, candidates[-1])


def _reply(persona: list[str], history: list[str], reply: str) -> dict[str, str]:
    """One reply; of what was said before, the last is the other speaker's."""
    sides = ("You", "Them")
    said = [f"{sides[(len(history) - turn) % 2]}: {text.strip()}" for turn, text in enumerate(history)]
    who = "".join(f"- {text.strip()}\n" for text in persona)
    given = f"Who you are:\n{who}\nConversation:\n" + "".join(f"{line}\n" for line in said) + "You:"
    return {"instruction": REPLY, "input": given, "output": reply.strip()}


def _parlai(source: Source) -> Iterator[_Conversation]:
    """Conversations of ParlAI's text: numbered lines that start at 1 again, persona first, then turns between tabs."""
    persona: list[str] = []
    history: list[str] = []
    replies: _Conversation = []
    lines = read_text(source.name).split("\n")  # a turn may hold other line ends
    for number, line in enumerate(filter(str.strip, lines)):
        index, _, text = line.partition(" ")
        if index == "1":
            yield replies
            persona, history, replies = [], [], []
        if text.startswith(PERSONA):
            persona.append(text.removeprefix(PERSONA))
            continue
        said, tab, answer = text.partition("\t")
        answer = answer.split("\t", 1)[0]
        if not index.isdigit() or not tab or not answer.strip():
            raise InputError(
                f"{name_row(source, number)}: neither a persona nor two turns between a tab; mend the line"
            )
        history = [*history, said]
        replies.append((number, _reply(persona, history, answer)))
        history = [*history, answer]
    yield replies
