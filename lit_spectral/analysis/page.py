"""An analysis as one HTML page that needs nothing else, not even a network."""

from __future__ import annotations

from html import escape

from lit_spectral import pages
from lit_spectral.analysis.by_loss import ByLoss
from lit_spectral.analysis.effect_views import Effects, effect_figures, effect_rows
from lit_spectral.analysis.loss_views import (
    fisher_figures,
    fisher_rows,
    intervention_figures,
    intervention_rows,
    transfer_rows,
)
from lit_spectral.analysis.magnitude import ABOVE
from lit_spectral.analysis.measuring import Analysis
from lit_spectral.analysis.results import intruders_by_threshold, projections_by_kind, summary, weights_by_kind
from lit_spectral.analysis.views import figures
from lit_spectral.updates.intruders import AMONG

__all__ = ["title_of", "write_page"]

_LEGEND = """ΔW is what an adapter adds to a weight W₀ of its backbone. U and V are W₀'s k leading left and right
singular vectors. φ is the similarity of the r leading left singular vectors of ΔW with W₀'s r largest, smallest, or
randomly drawn ones: 0 orthogonal, 1 the same, r / outputs by chance. Shares are of ‖ΔW‖_F² of all maps together."""
_SIZE = f"HiRA's figures 4, 5, 7 and 8. Dotted: {ABOVE}."
_PLACE = """φ as in MiLoRA's figure 3. Gains are the diagonal of Uᵀ ΔW V, which HiP-LoRA learns as δ (its figure 4)."""
_PROJECTED = """Norms of W₀ and ΔW within the r leading singular vectors of ΔW, of W₀, or of a random matrix: means over
layers. Factor W→ΔW: ‖ΔW‖_F over the first of them, how much louder ΔW is than what W₀ had there; factor ΔW→W: ‖ΔW‖_F
over ΔW's norm within W₀'s; both medians. FCLoRA's table 7, HiLoRA's table 3, MiLoRA's table 5."""
_INTRUDERS = f"""How many of the {AMONG} leading left singular vectors of each W₀ + ΔW have a |cosine| below a threshold
with every left singular vector of W₀ (Shuttleworth et al., 2410.21228)."""
_WEIGHTS = """Means over layers. σ⁽¹⁾ to σ⁽³⁾ are the quartiles of a weight's singular values, counted upwards, and
σ⁽⁴⁾ is the largest; α is the rate of the decay C e^(−αn) that is nearest to σₙ / σ₁; n at 5 % is how many singular
values it takes to come within 5 % of W₀ (dotted), beside those of a random matrix of low rank. FCLoRA's appendix H."""


_EFFECTS = """In nats a token: KL(base ‖ adapted) of the distributions of next tokens (of encoders: masked ones), and
MiLoRA's forgetting loss, the cross-entropy to the backbone's own predictions, which is that much above their entropy.
Of hidden states, centred, over all tokens (of decoders but a window's first): linear CKA (1905.00414), and the
Procrustes residual, the share of the backbone's states that no rotation and scale of the adapted ones explains. Where
nothing moved they are 1 and 0."""
_SWITCHED = """ Below, the ΔW of one place is switched off, or all others' are; dotted with all of them. What a place
forgets is how much KL falls without it; places work together, so that neither adds up."""
_TRANSFER = """Each adapter's ΔW on each task's validation data, under the head that the task's own run trained, as in
HiRA's figure 9; beside the backbone without any."""
_FISHER = """How alike two tasks' diagonal Fisher information F̂ᵢ = E[(uᵢᵀ G vᵢ)²] is on the components σᵢ uᵢ vᵢᵀ of the
backbone's W₀, G being a row's gradient, by groups of components from the largest σ on: Σ √(F̂ᵢ F̂ᵢ′), each scaled to a
sum of 1 within the group, 0 to 1, mean over maps (FCLoRA's appendix E; empirical, nothing off the diagonal). The two
halves of one task's rows, dotted, are as alike as the same task is with half the rows: what is below them differs."""
_INTERVENED = """The change of the backbone's loss, in nats, where one component of one W₀ is removed (zero), turned
round (flip) or shaken (noise), and how it goes with σ, with bootstrapped 95 % intervals (HiP-LoRA's table 3).
Components are drawn of all maps together."""


def title_of(analysis: Analysis, backbone: str) -> str:
    """What page and picture show."""
    return f"What {', '.join(analysis.changes)} change{'s' * (len(analysis.changes) == 1)} in {backbone}"


def write_page(analysis: Analysis, effects: Effects, losses: ByLoss, title: str, command: str) -> str:
    """The page's HTML: a summary, then sizes, places, intruders and W₀, each with pictures, and how to run it again.

    Args:
        analysis: what was measured.
        effects: on the model, by source and text; empty where no text was given.
        losses: what was measured by them, if anything.
        title: of the page.
        command: that measured it.
    """
    settings = f"{len(analysis.weights)} maps · r = {analysis.rank}, k = {analysis.top}, seed {analysis.seed}"
    parts = [
        _note(_LEGEND),
        pages.table(["", *analysis.changes], summary(analysis)),
        _heading("How large ΔW is", _SIZE),
        pages.panels(figures(analysis, "size")),
        _heading("Where ΔW lies beside W₀", _PLACE),
        pages.panels(figures(analysis, "place")),
        _heading("W₀ and ΔW in each other's subspaces", _PROJECTED),
        pages.table(*projections_by_kind(analysis)),
        _heading("Intruder dimensions", _INTRUDERS),
        pages.table(*intruders_by_threshold(analysis)),
        pages.panels(figures(analysis, "intruders")),
        *_effects(effects),
        *_losses(losses),
        _heading("W₀", _WEIGHTS),
        pages.table(*weights_by_kind(analysis)),
        pages.panels(figures(analysis, "weights")),
        f"<h2>How to run it again</h2>\n<pre>{escape(command)}</pre>",
    ]
    return pages.document(title, title, f"{settings} · {pages.when(pages.processor())}", "\n".join(parts))


def _effects(effects: Effects) -> list[str]:
    if not effects:
        return []
    switched = any(effect.switched for texts in effects.values() for effect in texts.values())
    return [
        _heading("What it does to the model", _EFFECTS + _SWITCHED * switched),
        pages.table(*effect_rows(effects)),
        pages.panels(effect_figures(effects)),
    ]


def _losses(losses: ByLoss) -> list[str]:
    parts = []
    if losses.transfer:
        parts += [_heading("Each adapter on each task", _TRANSFER), pages.table(*transfer_rows(losses))]
    if losses.overlaps:
        parts += [_heading("Components of W₀ that tasks share", _FISHER), pages.table(*fisher_rows(losses))]
        parts += [pages.panels(fisher_figures(losses))]
    if losses.interventions:
        parts += [_heading("Components of W₀ that the backbone needs", _INTERVENED)]
        parts += [pages.table(*intervention_rows(losses)), pages.panels(intervention_figures(losses))]
    return parts


def _heading(title: str, note: str) -> str:
    return f"<h2>{escape(title)}</h2>{_note(note)}"


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'
