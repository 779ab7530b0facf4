"""How near generated texts come to reference texts: the metrics of dialogue (HiRA, Table 2), by well-kept libraries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_spectral.errors import InputError

__all__ = ["bert_score", "bleu", "find_wordnet", "meteor", "rouge_l"]


def bleu(texts: Sequence[str], references: Sequence[str]) -> float:
    """Corpus BLEU-4 with sacrebleu's tokenisation `13a`, in [0, 1] (Papineni et al., 2002)."""
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


def bert_score(texts: Sequence[str], references: Sequence[str], model: str, layer: int) -> dict[str, float]:
    """Mean BERTScore, neither weighted by rarity nor rescaled (Zhang et al., 2020; torchmetrics').

    Args:
        texts: generated.
        references: one each.
        model: an encoder's folder or hub id, such as `roberta-large`.
        layer: whose states are compared, from 1; 17 for roberta-large by its authors' choice.

    Returns:
        `precision`, `recall` and `f1`, in [-1, 1].
    """
    from torchmetrics.functional.text.bert import bert_score as score

    options: dict[str, Any] = {"model_name_or_path": model, "num_layers": layer, "verbose": True}
    scores: dict[str, Any] = score(list(texts), list(references), **options)
    return {name: float(scores[name].mean()) for name in ("precision", "recall", "f1")}
