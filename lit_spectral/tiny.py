"""The built-in backbone: a small ModernBERT, pretrained here on text that ships with Python.

Its rotary positions are why it is no plain BERT, which in a minute learns little more than word frequencies.
It is made with nothing of this package above it, since data modules and tasks stand on backbones.
"""

from __future__ import annotations

import hashlib
import logging
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from lit_spectral.errors import InputError
from lit_spectral.files import locked, written
from lit_spectral.paths import cache_folder
from lit_spectral.python_text import sentences

__all__ = ["fetch", "train_tokenizer"]

log = logging.getLogger(__name__)

# Everything the result depends on besides the text, the libraries and the processor; part of the folder's name.
SHAPE: dict[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "max_position_embeddings": 128,
    "global_attn_every_n_layers": 1,
}
STEPS = 1200
WARMUP_STEPS = 120
BATCH_SIZE = 32
MAX_LENGTH = 64
LEARNING_RATE = 1.5e-3
# Raise it when code below changes what it makes of these.
FORMAT = 2


def fetch() -> Path:
    """The folder of the built-in encoder; pretrained first, in a minute or two, if it is not there.

    The folder appears when it is complete. Its name tells apart all that its bytes depend on.

    Raises:
        InputError: it is not there, and can't be written.
    """
    text = _text()
    folder = cache_folder("backbones") / f"tiny-{_name(text)}"
    if not folder.is_dir():
        with locked(folder) as trouble:
            if not folder.is_dir():  # nor did another process make it while this one waited
                try:
                    if trouble is not None:
                        raise trouble
                    log.warning("pretraining the built-in backbone `tiny` on the text that ships with Python, once")
                    with written(folder) as scratch:
                        _pretrain(text, scratch)
                except (OSError, SafetensorError) as error:
                    raise InputError(
                        f"backbone: tiny can't be kept in {folder.parent} ({error}); "
                        "set LIT_SPECTRAL_CACHE to a folder that can be written to"
                    ) from error
    return folder


def _text() -> list[str]:
    """All but the lines on which `MaskedText` validates by default."""
    import datasets

    parts = datasets.Dataset.from_dict({"text": sentences()}).train_test_split(0.05, seed=0)
    return list(parts["train"]["text"])


def _name(text: list[str]) -> str:
    import tokenizers
    import transformers

    recipe = (SHAPE, STEPS, WARMUP_STEPS, BATCH_SIZE, MAX_LENGTH, LEARNING_RATE, FORMAT)
    libraries = (torch.__version__, transformers.__version__, tokenizers.__version__)
    # By which torch chooses how sums are cut, and so how they are rounded.
    processor = (platform.system(), platform.machine(), torch.backends.cpu.get_cpu_capability())
    return hashlib.blake2b(repr((recipe, libraries, processor, text)).encode(), digest_size=6).hexdigest()


def _pretrain(text: list[str], folder: Path) -> None:
    from transformers import AutoModelForMaskedLM, DataCollatorForLanguageModeling, ModernBertConfig, get_scheduler

    from lit_spectral.bars import track

    tokenizer = train_tokenizer(text, SHAPE["vocab_size"], SHAPE["max_position_embeddings"])
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "cls", "sep")}
    ends = {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id}
    with _reproducible():
        config = ModernBertConfig(**SHAPE, **special, **ends)
        auto_class: Any = AutoModelForMaskedLM  # untyped
        model = auto_class.from_config(config, attn_implementation="eager", dtype=torch.float32)
        # Before it is trained, too: a folder that can't hold it is met now.
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        rows = tokenizer(text, truncation=True, max_length=MAX_LENGTH, return_special_tokens_mask=True)
        collate = DataCollatorForLanguageModeling(tokenizer)
        parameters = [[p for p in model.parameters() if (p.ndim > 1) == decays] for decays in (True, False)]
        groups = [{"params": parameters[0], "weight_decay": 0.01}, {"params": parameters[1], "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE)
        schedule = get_scheduler("linear", optimizer, WARMUP_STEPS, STEPS)
        model.train()
        batches = islice(_batches([len(ids) for ids in rows["input_ids"]]), STEPS)
        for batch in track(batches, "pretraining tiny", total=STEPS):
            model(**collate([{name: column[i] for name, column in rows.items()} for i in batch])).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        model.eval().save_pretrained(folder)


def _batches(lengths: list[int]) -> Iterator[list[int]]:
    """Indices of rows of like length, epoch after epoch, in a random order."""
    while True:
        order = sorted(torch.randperm(len(lengths)).tolist(), key=lengths.__getitem__)
        full = range(0, len(order) - BATCH_SIZE + 1, BATCH_SIZE)
        for batch in torch.randperm(len(full)).tolist():
            yield order[full[batch] :][:BATCH_SIZE]


@contextmanager
def _reproducible() -> Iterator[None]:
    """Float32 on one thread of the CPU from seed 0, whatever run this is called in, which is left as it was."""
    threads, dtype, precision = torch.get_num_threads(), torch.get_default_dtype(), torch.get_float32_matmul_precision()
    # How a sum is shared between threads decides how it is rounded.
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float32)
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.random.fork_rng(devices=[]),
            torch.device("cpu"),
            torch.autocast("cpu", enabled=False),
            torch.inference_mode(False),
            torch.enable_grad(),
        ):
            torch.default_generator.manual_seed(0)  # a GPU's is not forked
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        torch.set_float32_matmul_precision(precision)


def train_tokenizer(text: list[str], vocab_size: int, longest: int) -> Any:
    """A lower-casing WordPiece tokenizer with BERT's special tokens, the same for the same text.

    Args:
        text: what its vocabulary is made of.
        vocab_size: entries at most, unless the text has more characters.
        longest: its model's length.
    """
    from tokenizers import BertWordPieceTokenizer
    from transformers import PreTrainedTokenizerFast

    trained = BertWordPieceTokenizer(lowercase=True)
    words = {
        word
        for line in text
        for word, _ in trained.pre_tokenizer.pre_tokenize_str(trained.normalizer.normalize_str(line))
    }
    # Pairs that are equally frequent are merged in the order of their parts' numbers, which characters that go on
    # a word get as the words come out of a hash table, unless they have some already; rare characters, of which
    # those above the limit are left out, are met in that order too.
    inside = sorted({f"##{character}" for word in words for character in word[1:]})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    options: dict[str, Any] = {"limit_alphabet": len(set("".join(words))), "show_progress": False}
    trained.train_from_iterator(text, vocab_size=vocab_size, special_tokens=[*special, *inside], **options)
    # Anew, since these must not count as special tokens in a text.
    tokenizer: Any = PreTrainedTokenizerFast  # untyped
    return tokenizer(
        tokenizer_object=BertWordPieceTokenizer(trained.get_vocab(), lowercase=True)._tokenizer,
        model_max_length=longest,
        **{f"{token[1:-1].lower()}_token": token for token in special},
    )
