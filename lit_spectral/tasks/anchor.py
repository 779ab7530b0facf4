"""Settings of the penalty that keeps an adapted model near its base model."""

from __future__ import annotations

from dataclasses import dataclass

from lit_spectral.errors import InputError, check_at_least

__all__ = ["Anchor"]


@dataclass
class Anchor:
    """A penalty on how far the adapted model is from its base model on a text, at every few optimizer steps.

    The textbook answer to forgetting, for any method whose adapters can be passed over: the base model is the same
    one without them, both in eval mode, so that no second one is in memory. On what the task itself is given it is
    Learning without Forgetting (Li and Hoiem, 2016), on text of the model's own it is generative replay (Shin et al.,
    2017). The distance is

    - of a decoder KL(base ‖ adapted), in nats, the mean over the tokens to be predicted;
    - of an encoder whose files have a masked-language head the same, over masked tokens under that head;
    - of another encoder 1 − the cosine between a row's mean-pooled states in both, the mean over rows, in [0, 2]:
      there are no distributions, and this is what retention calls drift.

    Its gradient, times `weight` and `every`, is added to the task's at each `every`-th step, before clipping: on
    average it weighs the same whatever `every` is (lazy regularisation, Karras et al., 2020). Such a step costs two
    forward passes and a backward one more, of its rows. The distance is logged as `train/anchor`; it is no part of the
    loss.

    Args:
        weight: λ; 0 for no penalty, which costs nothing.
        every: optimizer steps from one penalised step to the next.
        text: `prompts`: the step's own rows; of a decoder's the positions that predict a prompt's tokens, not those of
            the answer. `self`: what the backbone of a decoder generates, drawn once for each seed and kept in the
            cache. Or a corpus: a file, a folder, `wikitext-2`, … as retention takes them.
        limit: texts to generate, or windows or lines of the corpus; None for all of that.
        max_length: tokens of a text at most, of a decoder's windows exactly.
        batch_size: texts in a step, on each process, drawn by the step's number; prompts are all rows of the step.

    Raises:
        InputError: a weight below 0, a size below 1.
    """

    weight: float = 1.0
    every: int = 4
    text: str = "prompts"
    limit: int | None = 128
    max_length: int = 128
    batch_size: int = 8

    def __post_init__(self) -> None:
        check_at_least(0, **{"model.anchor.weight": self.weight})
        sizes = {"every": self.every, "limit": self.limit, "batch_size": self.batch_size}
        check_at_least(1, **{f"model.anchor.{name}": size for name, size in sizes.items()})
        check_at_least(2, **{"model.anchor.max_length": self.max_length})
        if not self.text:
            raise InputError("model.anchor.text is empty; give prompts, self, or a corpus")
        if self.limit is None and self.text == "self":
            raise InputError("model.anchor.limit: of generated texts there is no end; give a number")

    def is_due(self, step: int) -> bool:
        """Whether the step after so many others is penalised."""
        return (step + 1) % self.every == 0
