"""What repairs and measures of changes ask of their backbone; it is opened when one first asks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from threading import Lock
from typing import TYPE_CHECKING

from torch import Tensor

from lit_spectral.errors import InputError
from lit_spectral.input_text import RANDOM, input_tokens
from lit_spectral.methods.spectra import Spectra
from lit_spectral.spectra.input_directions import Fed
from lit_spectral.updates.delta import Delta

if TYPE_CHECKING:
    from lit_spectral.updates.weights import Weights

__all__ = ["Backbone"]


class Backbone:
    """The W₀ of changes, and what its linear maps are mostly fed.

    Args:
        name: a hub id or folder; empty where nobody knows.
        weights: W₀ (out, in) by module path in the full model; None for those in the files of `name`.
        input_text: what the model reads when maps' inputs are looked at, as of `lit_spectral.input_text.input_tokens`.

    What it is asked for raises InputError where no backbone is known, or it is another one's.
    """

    def __init__(self, name: str = "", weights: Mapping[str, Tensor] | None = None, input_text: str = RANDOM) -> None:
        self.name = name
        self._given = weights
        self._input_text = input_text

    @cached_property
    def weights(self) -> Mapping[str, Tensor]:
        """All that there are."""
        if self._given is not None:
            return self._given
        return self.files()

    def files(self) -> Weights:
        """Its files, opened anew."""
        name = self._known()
        from lit_spectral.updates.weights import Weights

        return Weights(name)

    def of(self, changes: Mapping[str, Delta]) -> Mapping[str, Tensor]:
        """W₀ of each changed map, looked up one at a time."""
        return _Chosen(self.weights, changes)

    def behind(self, path: str, delta: Delta) -> Tensor | None:
        """W₀ where ΔW multiplies it; None for the others, which can be had without it."""
        return None if delta.hadamard is None else self.of({path: delta})[path]

    def spectra(self, changes: Mapping[str, Delta]) -> Spectra:
        """Those of the changed maps' W₀, and of their inputs, for which the whole backbone is loaded."""
        return Spectra(self.of(changes), partial(self._fed, changes))

    def _fed(self, changes: Mapping[str, Delta]) -> Fed:
        from transformers import AutoModel

        from lit_spectral.backbones import Loading, fetch, load_model

        name = self._known()
        encoder, _ = load_model(AutoModel, fetch(name), Loading(dtype="auto"))
        modules, prefix = dict(encoder.named_modules()), f"{getattr(encoder, 'base_model_prefix', '')}."
        targets = {path: modules.get(path.removeprefix(prefix)) for path in changes}
        inside = {path: module for path, module in targets.items() if module is not None}
        return Fed(encoder, inside, input_tokens(self._input_text, encoder, None, name))

    def _known(self) -> str:
        if not self.name:
            raise InputError("backbone: the adapter doesn't say which it is for, and it is needed; give --backbone")
        return self.name


class _Chosen(Mapping[str, Tensor]):
    """Weights of changed maps alone, each of the change's shape; read by one thread at a time, as files must be."""

    def __init__(self, weights: Mapping[str, Tensor], changes: Mapping[str, Delta]) -> None:
        self._weights, self._changes = weights, changes
        self._lock = Lock()

    def __getitem__(self, path: str) -> Tensor:
        shape = self._changes[path].shape
        try:
            with self._lock:
                weight = self._weights[path]
        except KeyError:
            what = f"backbone: it has no {path}, which the adapter changes"
            raise InputError(f"{what}; give the one it was trained on") from None
        if tuple(weight.shape) != shape:
            theirs, ours = (" x ".join(map(str, each)) for each in (weight.shape, shape))
            raise InputError(f"backbone: {path} is {theirs} and its change {ours}; give the one it was trained on")
        return weight

    def __iter__(self) -> Iterator[str]:
        return iter(self._changes)

    def __len__(self) -> int:
        return len(self._changes)
