"""Task, data and trainer of a run's config, to validate adapters by, again and again."""

from __future__ import annotations

import torch

from lit_spectral.lightning_cli import SpectralCLI, Unrun

__all__ = ["unrun"]


def unrun(config: str, adapter: str, backbone: str | None, device: torch.device) -> SpectralCLI:
    """LightningCLI of `validate`, which leaves nothing behind and shows no bar; nothing is loaded but the adapter.

    Args:
        config: YAML that a run has written.
        adapter: any source, which the method `Given` puts on.
        backbone: in place of the config's; None for that.
        device: where to validate.
    """
    place = {"accelerator": "cpu" if device.type == "cpu" else "gpu", "devices": f"[{device.index or 0}]"}
    place |= {"devices": "1"} if device.type == "cpu" else {}
    quiet = ("logger", "enable_progress_bar", "enable_model_summary")
    trainer = {**place, **dict.fromkeys(quiet, "false")}
    flags = [f"--trainer.{name}={value}" for name, value in trainer.items()]
    flags += ["--ckpt_path=null", f"--adapter={adapter}"]
    flags += [f"--model.backbone={backbone}"] if backbone else []
    return Unrun(["validate", f"--config={config}", *flags])
