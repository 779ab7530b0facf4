"""Data modules: rows from the hub or a local folder, tokenised, as batches."""

from lit_spectral.datamodules.chat import ChatText
from lit_spectral.datamodules.commonsense import Commonsense
from lit_spectral.datamodules.convai2 import ConvAI2
from lit_spectral.datamodules.edits import Edits
from lit_spectral.datamodules.glue import GLUE
from lit_spectral.datamodules.instructions import Instructions
from lit_spectral.datamodules.labelled import LabelledText
from lit_spectral.datamodules.masked_text import MaskedText
from lit_spectral.datamodules.math_problems import Math
from lit_spectral.datamodules.prompted import PromptedText
from lit_spectral.datamodules.python_docs import PythonDocs
from lit_spectral.datamodules.science_qa import ScienceQA
from lit_spectral.datamodules.squad import SQuAD
from lit_spectral.datamodules.text import TextDataModule
from lit_spectral.datamodules.text_windows import TextWindows

__all__ = [
    "GLUE",
    "ChatText",
    "Commonsense",
    "ConvAI2",
    "Edits",
    "Instructions",
    "LabelledText",
    "MaskedText",
    "Math",
    "PromptedText",
    "PythonDocs",
    "SQuAD",
    "ScienceQA",
    "TextDataModule",
    "TextWindows",
]
