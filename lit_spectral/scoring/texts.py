"""How near generated texts come to reference texts: the metrics of dialogue (HiRA, Table 2), by well-kept libraries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_spectral import backbones
from lit_spectral.bars import track
from lit_spectral.errors import InputError

__all__ = ["BERTScore", "bleu", "find_wordnet", "meteor", "rouge_l"]


def bleu(texts: Sequence[str], references: Sequence[str]) -> float:
    """Corpus BLEU-4, sacrebleu's tokenisation `13a` and smoothing `exp`, in [0, 1] (Papineni et al., 2002)."""
    import sacrebleu

    return float(sacrebleu.corpus_bleu(list(texts), [list(references)]).score) / 100


def rouge_l(texts: Sequence[str], references: Sequence[str]) -> float:
    """Mean F-measure of the longest common subsequence, unstemmed, in [0, 1] (Lin, 2004)."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    pairs = zip(texts, references, strict=True)
    return sum(float(scorer.score(reference, text)["rougeL"].fmeasure) for text, reference in pairs) / len(texts)


def meteor(texts: Sequence[str], references: Sequence[str]) -> float:
    """Mean METEOR with stems and WordNet's synonyms, in [0, 1] (Banerjee and Lavie, 2005; nltk's).

    Args:
        texts: generated.
        references: one each.

    Raises:
        LookupError: `find_wordnet` has not found it.
    """
    from nltk.tokenize import NLTKWordTokenizer
    from nltk.translate.meteor_score import single_meteor_score

    words = NLTKWordTokenizer().tokenize
    pairs = zip(texts, references, strict=True)
    scores = [float(single_meteor_score(words(reference), words(text))) for text, reference in pairs]
    return sum(scores) / len(scores)


def find_wordnet(nltk_data: str | None = None) -> bool:
    """Whether WordNet is in a folder of nltk's data, from which nltk reads from then on; None for nltk's own folders.

    Raises:
        InputError: a folder that is given, without `corpora/wordnet` or `corpora/wordnet.zip` in it.
    """
    import nltk

    if nltk_data is not None:
        folder = Path(nltk_data).expanduser().resolve()
        if not any((folder / "corpora" / name).exists() for name in ("wordnet", "wordnet.zip")):
            raise InputError(
                f"data.nltk_data: {nltk_data} has no corpora/wordnet; "
                f"`python -m nltk.downloader -d {nltk_data} wordnet` fetches it"
            )
        nltk.data.path.insert(0, str(folder))
    for name in ("corpora/wordnet", "corpora/wordnet.zip"):
        try:
            nltk.data.find(name)
        except LookupError:
            continue
        return True
    return False


class BERTScore:
    """BERTScore, neither weighted by rarity nor rescaled (Zhang et al., 2020).

    Ours, since torchmetrics' (1.9) compares texts with other rows' references when their lengths differ.

    Args:
        model: an encoder's folder or hub id, such as `roberta-large`.
        layer: whose states are compared, from 1; 17 for roberta-large by its authors' choice.

    Raises:
        InputError: no such encoder, or no such layer in it.
    """

    def __init__(self, model: str, layer: int) -> None:
        from transformers import AutoConfig

        try:
            layers = int(AutoConfig.from_pretrained(model, trust_remote_code=False).num_hidden_layers)
        except (OSError, ValueError, AttributeError) as error:
            raise InputError(f"data.bert_score_model: {model}: {str(error).splitlines()[0]}") from error
        if not 1 <= layer <= layers:
            raise InputError(f"data.bert_score_layer: {model} has layers 1 to {layers}, not {layer}")
        self.model = model
        self.layer = layer

    @torch.no_grad()
    def __call__(
        self, texts: Sequence[str], references: Sequence[str], device: torch.device | str = "cpu"
    ) -> dict[str, float]:
        """Mean `precision`, `recall` and `f1`, in [-1, 1], of texts with one reference each; of an empty text 0."""
        from transformers import AutoModel

        tokenizer = backbones.load_tokenizer(self.model)
        # What lies above the layer is not loaded, so that its states are the last.
        model = backbones.load_model(AutoModel, self.model, num_hidden_layers=self.layer)[0].eval().to(device)
        totals = torch.zeros(3, dtype=torch.float64)
        for start in track(range(0, len(texts), 32), "BERTScore"):
            pairs = [_states(model, tokenizer, side[start : start + 32]) for side in (texts, references)]
            for text, reference in zip(*pairs, strict=True):
                if len(text) and len(reference):
                    likeness = text @ reference.T
                    precision, recall = float(likeness.amax(1).mean()), float(likeness.amax(0).mean())
                    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
                    totals += torch.tensor([precision, recall, f1], dtype=torch.float64)
        return dict(zip(("precision", "recall", "f1"), (totals / len(texts)).tolist(), strict=True))


def _states(model: Any, tokenizer: Any, texts: Sequence[str]) -> list[Tensor]:
    """Of each text, its tokens' states of length 1 (tokens, width), without those of special tokens."""
    options = {"padding": True, "padding_side": "right", "truncation": True, "return_special_tokens_mask": True}
    batch = tokenizer(list(texts), return_tensors="pt", **options)
    kept = batch.pop("special_tokens_mask") == 0
    states = model(**batch.to(model.device)).last_hidden_state.float()
    return [F.normalize(row[mask], dim=-1) for row, mask in zip(states, kept.to(states.device), strict=True)]
