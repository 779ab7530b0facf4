"""Plain text to measure a model on: the papers' corpora from the hub, and any file or folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from lit_spectral.datamodules.columns import as_text, shown
from lit_spectral.datamodules.files import check_columns, read_rows, read_split, split_exists
from lit_spectral.datamodules.plain_text import read_blocks
from lit_spectral.datamodules.sources import Source, source_of, source_of_file
from lit_spectral.datamodules.splits import FORMATS

from lit_spectral.errors import InputError, nearest
from lit_spectral.python_text import sentences

__all__ = ["CORPORA", "PYTHON_DOCS", "check_corpus", "read_passages"]

PYTHON_DOCS = "python-docs"


class _Corpus(NamedTuple):
    hub_id: str
    subset: str | None
    split: str
    revision: str | None = None


# FCLoRA measures on the first three (Tables 5, 15 and 16), MiLoRA on a WikiText; where there are no
# other splits, the split that is read was trained on. Scripts, which datasets 4 doesn't run, have
# been converted to parquet under a revision of the hub's own. finewiki: peft's comparison on MetaMathQA.
CORPORA = {
    "bookcorpus": _Corpus("bookcorpus/bookcorpus", "plain_text", "train", "refs/convert/parquet"),
    "finewiki": _Corpus("HuggingFaceFW/finewiki", None, "train"),
    "openwebtext": _Corpus("Skylion007/openwebtext", "plain_text", "train", "refs/convert/parquet"),
    "pg19": _Corpus("emozilla/pg19", None, "validation"),
    "wikitext-2": _Corpus("Salesforce/wikitext", "wikitext-2-raw-v1", "validation"),
    "wikitext-103": _Corpus("Salesforce/wikitext", "wikitext-103-raw-v1", "validation"),
}


def read_passages(path: str, splits: Sequence[str] = ("validation", "test", "train")) -> Iterator[str]:
    """The texts of a corpus in order, read as they are asked for; each ends with a new line.

    Args:
        path: a UTF-8 text file; a folder of .txt files, read in the order of their names; a jsonl,
            json, parquet or csv file with a column `text`, or a folder with such a split; a name
            in `CORPORA`; or `python-docs`, what ships with Python, sentence by sentence.
        splits: of a folder, the first that there is; to measure on, `train` comes last.

    Raises:
        InputError: nothing there, no column `text`, a file that can't be read, the hub out of reach.
    """
    if not path:
        raise InputError(f"data.path is empty; give a file, a folder, or one of {', '.join(CORPORA)}")
    given = Path(path).expanduser()
    if path == PYTHON_DOCS and not given.exists():
        texts: Iterator[str] = iter(sentences())
    elif path in CORPORA and not given.exists():
        texts = _from_hub(path)
    elif given.suffix.lower() in FORMATS:
        texts = _texts(read_rows(path), source_of_file(path))
    elif given.is_dir() and not any(given.glob("*.txt")):
        split = next((name for name in splits if split_exists(path, name)), None)
        if split is None:
            raise InputError(f"data.path: the folder {path} has no .txt file, nor a split of rows with a column text")
        texts = _texts(read_split(path, split), source_of(path, split))
    else:
        if not given.exists() and "." not in path:
            near = nearest(path, [PYTHON_DOCS, *CORPORA])
            raise InputError(f"there is no text {path}{near}; a file or a folder will do")
        texts = read_blocks(path)
    return (text if text.endswith("\n") else f"{text}\n" for text in texts)


def read_training_passages(path: str) -> Iterator[str]:
    """As `read_passages`, of a folder `train` before all, for what is divided into rows to train and to validate on.

    Raises:
        InputError: a corpus on the hub of which the validation split is what is read.
    """
    if path in CORPORA and not Path(path).expanduser().exists() and CORPORA[path].split != "train":
        raise InputError(
            f"data.path: of {path} the {CORPORA[path].split} split is read, to measure on and not to train on; give a "
            "text of your own, or --data.validation_fraction 1 with validate"
        )
    return read_passages(path, ("train", "validation", "test"))


def check_corpus(path: str) -> None:
    """InputError, as of `read_passages`, for a corpus of which not one line can be read; that is all that is read."""
    if not any(text.strip() for text in read_passages(path)):
        raise InputError(f"data.path: {path} holds no text")


def _texts(rows: Any, source: Source) -> Iterator[str]:
    check_columns(rows, ["text"], source.name)
    yield from as_text(rows, ["text"], source)["text"]


def _from_hub(name: str) -> Iterator[str]:
    import datasets

    corpus = CORPORA[name]
    options = {"split": corpus.split, "streaming": True, "revision": corpus.revision}
    try:  # a stream finds out only when it is read
        rows = iter(datasets.load_dataset(corpus.hub_id, corpus.subset, **options))
        first = next(rows)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{name} ({corpus.hub_id}) is not to be had from the hub now; give a file or folder in its place ({reason})"
        ) from error
    return (_checked(row["text"], number, name) for number, row in enumerate(chain([first], rows)))


def _checked(text: Any, number: int, name: str) -> str:
    if not isinstance(text, str):
        raise InputError(f"{name}, row {number}: text is {shown(text)}, not text; give a copy without that row")
    return text
