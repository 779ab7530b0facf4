"""What judges answers: those that a rule reads, SQuAD's, texts beside references, and programs that are run.

What is exported is pure text; the rest is named by its module, since it takes torch, data modules or processes.
"""

from lit_spectral.scoring.answers import Scorer, keyword_scorer, score_letter, score_mathematics, score_number

__all__ = ["Scorer", "keyword_scorer", "score_letter", "score_mathematics", "score_number"]
