"""The built-in backbone: a small BERT, pretrained here on text that ships with Python."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from lit_spectral.paths import cache_folder

__all__ = ["fetch"]

log = logging.getLogger(__name__)

# Everything the result depends on besides the text; part of the folder's name.
RECIPE = {
    "vocab_size": 4096,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "max_position_embeddings": 128,
    "steps": 600,
    "batch_size": 64,
    "max_length": 64,
    "lr": 2e-3,
    "seed": 0,
}


def fetch() -> Path:
    """The folder of the built-in encoder; pretrained first, in about a minute and a half, if it is not there.

    The folder appears when it is complete, so an interrupted or concurrent run leaves no half of one.
    """
    from lit_spectral.datamodules.python_docs import sentences

    text = sentences()
    name = hashlib.blake2b(repr((RECIPE, text)).encode(), digest_size=6).hexdigest()
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
    from transformers import BertConfig, BertForMaskedLM

    from lit_spectral.adapters import detach
    from lit_spectral.datamodules import MaskedText
    from lit_spectral.methods import FullFineTuning
    from lit_spectral.tasks import MaskedLM

    tokenizer = _train_tokenizer(text, RECIPE["vocab_size"])
    shape = {key: value for key, value in RECIPE.items() if key in BertConfig().to_dict()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RECIPE["seed"])
        BertForMaskedLM(BertConfig(**shape, pad_token_id=tokenizer.pad_token_id)).save_pretrained(start)
        tokenizer.save_pretrained(start)
        task = MaskedLM(
            str(start),
            FullFineTuning(),
            optimizer=lambda params: torch.optim.AdamW(params, lr=RECIPE["lr"], weight_decay=0.01),
            warmup_steps=0.1,
        )
        trainer = pl.Trainer(
            max_steps=RECIPE["steps"],
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            gradient_clip_val=1.0,
            limit_val_batches=0,
            num_sanity_val_steps=0,
        )
        trainer.fit(task, MaskedText(batch_size=RECIPE["batch_size"], max_length=RECIPE["max_length"]))
    detach(task.model)
    task.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    shutil.rmtree(start)


def _train_tokenizer(text: list[str], vocab_size: int) -> Any:
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizerFast

    trained = BertWordPieceTokenizer(lowercase=True)
    trained.train_from_iterator(text, vocab_size=vocab_size, show_progress=False)
    return BertTokenizerFast(tokenizer_object=trained._tokenizer, model_max_length=RECIPE["max_position_embeddings"])
