"""Which files of a folder hold a split: one table of the names that splits have."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from lit_spectral.errors import InputError

__all__ = ["FORMATS", "choose", "files_of", "folder_of"]

# From suffixes that are read to the builders of `datasets`; and all that rows may be kept under.
FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
_KEPT = {
    *FORMATS,
    *(".tsv", ".txt", ".ndjson", ".jsonlines", ".jl", ".arrow", ".feather", ".orc", ".avro", ".xlsx", ".xls"),
    *(".xml", ".pkl", ".pickle", ".npy", ".npz", ".gz", ".bz2", ".xz", ".zst", ".zip"),
}
# In capitals or not. MNLI's end in `_matched` and `_mismatched`, as MNLI's splits do.
_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "development", "eval", "evaluation"),
    "test": ("test", "testing"),
}
_SPLIT_OF = {name: split for split, names in _NAMES.items() for name in names}
_ENDS = ("matched", "mismatched")
_SHARD = re.compile(r"-\d{5}-of-(\d{5})$")  # as the hub names the parts of a split


def folder_of(path: str, config: str | None = None) -> Path | None:
    """The folder at a path, or its subfolder for a config, if there is one; None for what must be a hub id.

    A single file of rows stands for a folder that holds it as its training split.

    Raises:
        InputError: an empty path, one that can be no hub id and is no folder, or a file that there isn't or that
            can't be read as rows.
    """
    if not path:
        raise InputError("data.path is empty; give a folder, '.' for this one, or a hub id")
    folder = Path(path).expanduser()
    if folder.is_dir():
        inner = folder / config if config else folder
        return inner if inner.is_dir() else folder
    if folder.is_file() and folder.suffix.lower() in FORMATS:
        return folder
    if folder.is_file() or folder.suffix.lower() in FORMATS:
        wrong = "can't be read as rows" if folder.is_file() else "is not there"
        raise InputError(f"data.path: the file {path} {wrong}; give one of {', '.join(FORMATS)}, or a folder")
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise InputError(f"data.path: there is no folder {path}")
    return None


def files_of(folder: Path, split: str) -> list[Path]:
    """The file of a split, or its shards in their order; none where the folder has no such split.

    `val.jsonl`, `Dev.csv` and `validation-00000-of-00001.parquet` are the split `validation`.

    Raises:
        InputError: two files that could be the split, a shard that is missing, or only one that is
            plainly meant as the split but can't be read as such (`dev.tsv`, `val.jsonl.gz`, `validation_set.json`).
    """
    if folder.is_file():
        return [folder] if split == "train" else []
    found: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    entries = sorted(folder.iterdir())
    for entry in entries:
        shard = _SHARD.search(entry.stem)
        name, count = (entry.stem[: shard.start()], shard[1]) if shard else (entry.stem, "")
        if entry.suffix.lower() in FORMATS and entry.is_file() and _split(name) == split:
            found[name, count, entry.suffix].append(entry.name)
    if len(found) > 1:
        first, second = (files[0] for files in list(found.values())[:2])
        raise InputError(
            f"data.path: {folder} has {first} and {second}, and both could be split {split}; move one out of the folder"
        )
    for (name, count, suffix), files in found.items():
        missing = [f"{name}-{i:05d}-of-{count}{suffix}" for i in range(int(count or 0))]
        missing = [file for file in missing if file not in files]
        if missing:
            raise InputError(f"data.path: {folder} has {files[0]}, but no {missing[0]}; add it")
        return [folder / file for file in files]
    meant = next((entry.name for entry in entries if _is_meant(entry, split)), None)
    if meant is not None:
        raise InputError(
            f"data.path: {folder} has {meant}, but it can't be read as split {split}; give it as "
            f"{split}{', '.join(FORMATS)}, or move it out of the folder"
        )
    return []


def choose(names: Sequence[str], split: str, where: str) -> str | None:
    """Of the names of a hub's splits, that of a split; None where there is none, InputError where there are several."""
    found = [name for name in names if _split(name) == split]
    if split in found or len(found) < 2:
        return split if split in found else next(iter(found), None)
    raise InputError(
        f"data.path: {where} has splits {found[0]} and {found[1]}, and both could be {split}; give a folder with one"
    )


def _split(name: str) -> str:
    """The split that a name is of, such as `validation_matched` for `Dev-matched`; another name is its own."""
    first, _, end = name.lower().replace("-", "_").partition("_")
    if first not in _SPLIT_OF or (end and end not in _ENDS):
        return name
    return f"{_SPLIT_OF[first]}_{end}" if end else _SPLIT_OF[first]


def _is_meant(entry: Path, split: str) -> bool:
    """Whether somebody who put this into the folder must have thought of the split."""
    wanted, _, end = split.partition("_")
    if entry.is_dir() and not entry.suffix:
        return _split(entry.name) == split and any(file.suffix.lower() in FORMATS for file in entry.iterdir())
    name = entry.name.lower()
    while Path(name).suffix in _KEPT:
        name = Path(name).stem
    words = re.findall("[a-z]+", name)
    if entry.name.startswith(".") or len(name) == len(entry.name) or not words:
        return False
    # The name of another set may well end in eval.
    said = words[0] in _SPLIT_OF or (words[-1] in _SPLIT_OF and not words[-1].startswith("eval"))
    splits = {_SPLIT_OF[word] for word in words if word in _SPLIT_OF}
    return said and splits == {wanted} and not (end and {*_ENDS} - {end} & {*words})
