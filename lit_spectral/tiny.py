"""The built-in backbone: a small ModernBERT, pretrained here on text that ships with Python.

Its rotary positions are why it is no plain BERT, which in a minute learns little more than word frequencies.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from lit_spectral.paths import cache_folder

__all__ = ["fetch", "train_tokenizer"]

log = logging.getLogger(__name__)

# Everything the result depends on besides the text; part of the folder's name.
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
BATCH_SIZE = 32
MAX_LENGTH = 64
LEARNING_RATE = 1.5e-3


def fetch() -> Path:
    """The folder of the built-in encoder; pretrained first, in a minute or two, if it is not there.

    The folder appears when it is complete, so an interrupted or concurrent run leaves no half of one.
    """
    from lit_spectral.datamodules.python_docs import sentences

    text = sentences()
    name = hashlib.blake2b(
        repr((SHAPE, STEPS, BATCH_SIZE, MAX_LENGTH, LEARNING_RATE, text)).encode(), digest_size=6
    ).hexdigest()
    folder = cache_folder("backbones") / f"tiny-{name}"
    if not folder.exists():
        log.warning("pretraining the built-in backbone `tiny` on the text that ships with Python, once")
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            made = Path(scratch) / "tiny"
            _pretrain(text, made, Path(scratch) / "start")
            try:
                os.replace(made, folder)
            except OSError:
                if not folder.exists():  # else another process was faster, with the same result
                    raise
    return folder


def _pretrain(text: list[str], folder: Path, start: Path) -> None:
    import lightning.pytorch as pl
    import torch
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    from lit_spectral.adapters import detach
    from lit_spectral.callbacks import SpectralMonitor
    from lit_spectral.datamodules import MaskedText
    from lit_spectral.methods import FullFineTuning
    from lit_spectral.tasks import MaskedLM

    tokenizer = train_tokenizer(text, SHAPE["vocab_size"], SHAPE["max_position_embeddings"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "cls", "sep")}
        ends = {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id}
        config = ModernBertConfig(**SHAPE, **special, **ends)
        ModernBertForMaskedLM(config).save_pretrained(start)
        tokenizer.save_pretrained(start)
        task = MaskedLM(
            str(start),
            FullFineTuning(),
            optimizer=lambda params: torch.optim.AdamW(params, lr=LEARNING_RATE, weight_decay=0.01),
            warmup_steps=0.1,
        )
        trainer = pl.Trainer(
            max_steps=STEPS,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            gradient_clip_val=1.0,
            limit_val_batches=0,
            callbacks=[SpectralMonitor(every_n_steps=0)],
            num_sanity_val_steps=0,
        )
        trainer.fit(task, MaskedText(batch_size=BATCH_SIZE, max_length=MAX_LENGTH))
    detach(task.model)
    task.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    shutil.rmtree(start)


def train_tokenizer(text: list[str], vocab_size: int, longest: int) -> Any:
    """A lower-casing WordPiece tokenizer with BERT's special tokens; `longest` is its model's length."""
    from tokenizers import BertWordPieceTokenizer
    from tokenizers.processors import BertProcessing
    from transformers import PreTrainedTokenizerFast

    trained = BertWordPieceTokenizer(lowercase=True)
    trained.train_from_iterator(text, vocab_size=vocab_size, show_progress=False)
    ends = ((token, trained.token_to_id(token)) for token in ("[SEP]", "[CLS]"))
    trained.post_processor = BertProcessing(*ends)
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "cls", "sep", "mask", "unk")}
    tokenizer: Any = PreTrainedTokenizerFast  # untyped
    return tokenizer(tokenizer_object=trained._tokenizer, model_max_length=longest, **special)
