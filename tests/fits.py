"""The same fit by one process and by several, and what it leaves: `python fits.py SETTINGS.json` in each of them."""

import dataclasses
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from lit_spectral.callbacks import RetentionMonitor
from lit_spectral.datamodules import PromptedText

from lit_spectral.adapters import adapters, trained_state
from lit_spectral.errors import InputError
from lit_spectral.methods import FCLoRA, LoRA, Peft
from lit_spectral.sharding import is_sharded
from lit_spectral.tasks import Anchor, CausalLM

ROWS = 12  # of which a step sees 4: 3 steps an epoch
CALM = {"lr": 1e-2, "eps": 1e-4}  # so that Adam makes no large step of a rounding


def methods():
    """Every method, without dropout, which differs from process to process."""
    from test_methods import SHORT

    found = {
        name: dataclasses.replace(method, dropout=0.0) if getattr(method, "dropout", 0) else method
        for name, method in SHORT.items()
    }
    adalora = found["AdaLoRA"].config | {"total_step": 6}
    return found | {
        "AdaLoRA": Peft(config=adalora),
        "FCLoRA by gradient": FCLoRA(rank=4, orthogonality="gradient", gamma=0.3),
        "FCLoRA in a ball": FCLoRA(rank=4, ball=0.01, sigma_bar=0.02),
        "LoRA on the backbone's own text": LoRA(rank=4, input_rank=0.5, input_text="self", ball={"of_outputs": 0.01}),
    }


class Notes(pl.Callback):
    """The loss of every step, how far adapters are out of their sets after it, and a checkpoint in the middle."""

    def __init__(self, checkpoint):
        self.checkpoint = checkpoint
        self.losses, self.outside, self.start = [], [], {}

    def on_train_start(self, trainer, pl_module):
        self.start = {name: p.detach().clone() for name, p in trainable(pl_module)}
        self.shards = {name: p.to_local().numel() for name, p in pl_module.named_parameters() if is_sharded(p)}
        modules = list(pl_module.named_modules(remove_duplicate=False))
        self.twice = [name for name, module in modules if sum(module is other for _, other in modules) > 1]
        self.frozen = {name: p.numel() for name, p in pl_module.named_parameters() if name not in self.start}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(pl_module._objective.value))
        self.outside.append(max([0.0, *map(outside, adapters(pl_module.model))]))

    def on_train_epoch_end(self, trainer, pl_module):
        if self.checkpoint and trainer.current_epoch == 0:
            trainer.save_checkpoint(self.checkpoint)


class Spectra(logging.Handler):
    """How many of how many spectra were computed, each time that they were asked for."""

    def __init__(self):
        super().__init__()
        self.counts = []

    def emit(self, record):
        if record.msg.startswith("SVD"):
            self.counts.append((record.args[1], record.args[2]))


def trainable(task):
    return [(name, p) for name, p in task.named_parameters() if p.requires_grad]


def outside(adapter):
    """How far an adapter is out of the sets that it declares: 0, or what rounding makes."""
    off = [0.0]
    for tensor, upper, lower in adapter.bounded:
        off += [float(tensor.detach().max()) - upper, lower - float(tensor.detach().min())]
    for columns, basis in adapter.confined:
        off.append(float((basis.mT @ columns).norm()))
    for tensor in adapter.orthonormal if adapter.retracted else ():
        off.append(float((tensor.mT @ tensor - torch.eye(tensor.shape[1])).norm()))
    if adapter.ball_radius is not None:
        off.append(float(torch.linalg.matrix_norm(adapter.delta_weight(), 2)) - adapter.ball_radius)
    return max(off)


def rows_of(folder):
    """Data whose batches of all processes together are those of one."""
    devices = int(os.environ.get("WORLD_SIZE", "1"))
    return PromptedText(folder, "{q}", "{a}", batch_size=4 // devices, eval_batch_size=1, max_length=40)


def fit(backbone, data, method, strategy, out, cache, resume=None, **settings):
    """Six steps; returns the trainer and its notes, and writes `out` with what they came to, a file each process."""
    devices = int(os.environ.get("WORLD_SIZE", "1"))
    os.environ["LIT_SPECTRAL_CACHE"] = cache  # one for all: signs of singular vectors are those of who computes them
    pl.seed_everything(0)
    notes = Notes(None if resume else f"{out}.ckpt")
    logger = pl.loggers.CSVLogger(f"{out}.logs", name="", version="")
    optimizer = lambda groups: torch.optim.AdamW(groups, weight_decay=0.0, **CALM)  # noqa: E731
    retention = RetentionMonitor({"text": f"{data}/text.txt"}, limit=4, max_length=16)
    if "anchor" in settings:
        settings["anchor"] = Anchor(**settings["anchor"])
    task = CausalLM(backbone, methods()[method], optimizer=optimizer, **settings)
    trainer = pl.Trainer(
        accelerator="cpu", devices=devices, strategy=strategy, max_epochs=2, logger=logger,
        callbacks=[notes, retention], log_every_n_steps=1, gradient_clip_val=0.5, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    spectra, log = Spectra(), logging.getLogger("lit_spectral.spectra.cache")
    log.setLevel(logging.INFO)
    log.addHandler(spectra)
    trainer.fit(task, rows_of(data), ckpt_path=resume)
    log.removeHandler(spectra)
    moved = {name: p.detach() - notes.start[name] for name, p in trainable(task)}
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    said = {"losses": notes.losses, "outside": notes.outside, "metrics": metrics | retention.latest, "moved": moved}
    said |= {
        "spectra": spectra.counts,
        "state": trained_state(task.model),
        "twice": notes.twice,
        "shards": notes.shards,
        "frozen": notes.frozen,
    }
    torch.save(said, f"{out}.{trainer.global_rank}.pt")
    return task, trainer


def together(folder, fits, timeout=600):
    """Run fits on two processes, one after the other; `fits` are arguments of `fit` by name of what they leave."""
    settings = folder / "settings.json"
    settings.write_text(json.dumps(fits))
    free = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__, str(settings)],
        cwd=folder, timeout=timeout, env=os.environ | free, capture_output=True, text=True, start_new_session=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]


def fit_or_note(out, **settings):
    """`fit`, or the line with which it was refused in a file."""
    try:
        fit(out=out, **settings)
    except InputError as error:
        Path(f"{out}.{os.environ['RANK']}.error").write_text(str(error), encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for each in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        fit_or_note(**each)
