"""The rows of the table of methods: each says how ΔW is built, where it starts and what holds it."""

from lit_spectral.methods.base import LowRankMethod, Method
from lit_spectral.methods.bottleneck import Houlsby, Parallel, Pfeiffer, Series
from lit_spectral.methods.bounds import Bound
from lit_spectral.methods.eblora import EBLoRA
from lit_spectral.methods.fclora import FCLoRA, HiLoRA
from lit_spectral.methods.full import BitFit, FullFineTuning
from lit_spectral.methods.given import Given
from lit_spectral.methods.hiplora import HiPLoRA, ProjLoRA
from lit_spectral.methods.hira import HiRA, HiRALoRA
from lit_spectral.methods.lora import LoRA, LoRAPlus, RsLoRA
from lit_spectral.methods.mora import MoRA
from lit_spectral.methods.peft import Peft
from lit_spectral.methods.stella import StelLA
from lit_spectral.methods.svd_start import SORSA, MiLoRA, PiSSA, RandomSVDLoRA

__all__ = [
    "SORSA",
    "BitFit",
    "Bound",
    "EBLoRA",
    "FCLoRA",
    "FullFineTuning",
    "Given",
    "HiLoRA",
    "HiPLoRA",
    "HiRA",
    "HiRALoRA",
    "Houlsby",
    "LoRA",
    "LoRAPlus",
    "LowRankMethod",
    "Method",
    "MiLoRA",
    "MoRA",
    "Parallel",
    "Peft",
    "Pfeiffer",
    "PiSSA",
    "ProjLoRA",
    "RandomSVDLoRA",
    "RsLoRA",
    "Series",
    "StelLA",
]
