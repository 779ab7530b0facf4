"""A model of transformers with adapters on it, to use and to switch: no Lightning, and no training."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, NoReturn

from lit_spectral.backbone_digest import backbone_digest
from lit_spectral.backbones import Loading, fetch, load_model, load_tokenizer, tell_padding
from lit_spectral.errors import InputError, nearest
from lit_spectral.updates.applied import Applied
from lit_spectral.updates.model_folder import described
from lit_spectral.updates.sources import read
from lit_spectral.updates.update import Update

__all__ = ["Adapters", "load"]

Place = str | os.PathLike[str]


def load(
    source: Place | Update,
    backbone: Place | None = None,
    *,
    name: str = "default",
    dtype: str = "auto",
    attn_implementation: str | None = None,
    quantization: str | None = None,
) -> Any:
    """The model of transformers that an adapter was trained in, with its head, and the adapter on it; in eval mode.

    `model.adapters` switches the adapter, and takes others: see `Adapters`. Nothing but the adapter's whole tensors
    asks for gradients.

    Args:
        source: a `.ckpt` that `fit` wrote, a folder of peft's, a folder of fine-tuned weights, or an `Update`.
        backbone: where the backbone lies, if not where the source says; fine-tuned weights don't say.
        name: of the adapter.
        dtype: of the backbone's weights: float32, bfloat16, float16, or `auto`, the files' own. The adapter's factors
            are in float32.
        attn_implementation: as in `lit_spectral.backbones.Loading`.
        quantization: as there.

    Raises:
        InputError: as `lit_spectral.updates.sources.read`; or a backbone that isn't named, can't be loaded, or is not
            the adapter's.
    """
    update = _update(source, backbone)
    loading = Loading(dtype, attn_implementation, quantization=quantization)
    if not update.backbone:
        raise InputError("the adapter doesn't say what its backbone is; give backbone, a folder or a hub id")
    files = fetch(update.backbone)
    config, kind = described(update, files)
    model: Any
    model, lacking = load_model(kind, files, loading, config=config)
    model.eval()
    if getattr(config, "pad_token_id", None) is None and kind.__name__.endswith("ForSequenceClassification"):
        with suppress(InputError):  # no tokenizer there; transformers then says what it can't do
            tell_padding(model, load_tokenizer(files))
    model.adapters = Adapters(model, update.backbone, lacking)
    model.adapters.add(update, name)
    model.adapters.use(name)
    return model


class Adapters:
    """Adapters by name, of which one is on their model at a time, or none.

    Switching is exact: with none, the model is its backbone to the bit, head and names of classes included; with one,
    it is what that one made of it before. While changes are folded into the weights (`lit_spectral.adapters.fold`),
    which runs them at the backbone's speed, nothing is switched.

    Args:
        model: of transformers, as it was loaded; it is handed `adapters` and a `save_pretrained` that refuses.
        backbone: where it was loaded from.
        lacking: names of its weights that the backbone's files lack, which every adapter has to bring.
    """

    def __init__(self, model: Any, backbone: str, lacking: Collection[str] = ()) -> None:
        new = {id(parameter) for name, parameter in model.named_parameters() if name in lacking}
        self._applied = Applied(model, backbone_digest(model.base_model, new))
        # The pooler of a bare encoder is made up by transformers too, and what it gives is for nobody.
        self._lacking = () if model.base_model is model else lacking
        self._backbone = backbone
        self._labels = dict(model.config.id2label)
        self._updates: dict[str, Update] = {}
        self._scales: dict[str, float] = {}
        self._used: str | None = None
        model.save_pretrained = self._refuse_to_save

    @property
    def names(self) -> list[str]:
        """Of all adapters, in the order in which they were added."""
        return list(self._updates)

    @property
    def active(self) -> str | None:
        """Which is on the model; None for none."""
        return None if self._applied.update is None else self._used

    def add(self, source: Place | Update, name: str) -> None:
        """Take another adapter of this backbone, of any method and rank, with a head of the same shapes; not used yet.

        Args:
            source: as in `load`.
            name: that no other has.

        Raises:
            InputError: a name that is taken; a source that can't be read, or isn't for this model. Nothing is changed.
        """
        if name in self._updates:
            raise InputError(f"there is an adapter {name} already; give another name")
        update = _update(source, self._backbone)
        try:
            self._applied.check(update)
            missing = next((key for key in self._lacking if key not in update.whole), None)
            if missing is not None:
                raise InputError(f"neither the adapter nor its backbone has {missing}; give an adapter that brings it")
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
        self._updates[name] = update

    def use(self, name: str) -> None:
        """Put an adapter on the model in place of what is there; InputError if there is none of that name."""
        if name not in self._updates:
            raise InputError(f"there is no adapter {name}{nearest(name, self.names)}")
        self._put(name)

    def enable(self) -> None:
        """Put on what was used last."""
        self._put(self._used)

    def disable(self) -> None:
        """Have the backbone without any adapter."""
        self._put(None)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The backbone within; afterwards what was active before."""
        before = self.active
        self.disable()
        try:
            yield
        finally:
            self._put(before)

    def scale(self, factor: float) -> None:
        """Multiply every ΔW of the adapter used last, now and whenever it is used again; its whole tensors stay.

        Args:
            factor: 1 as it was trained, 0 for the backbone with its head; any finite number.
        """
        assert self._used is not None
        self._applied.scale = factor
        self._scales[self._used] = factor

    def _put(self, name: str | None) -> None:
        update = None if name is None else self._updates[name]
        self._applied.put(update)
        if name is not None:
            self._used, self._applied.scale = name, self._scales.get(name, 1.0)
        config = self._applied.model.config
        known = update is not None and len(update.labels) == len(self._labels)
        config.id2label = update.labels if update is not None and known else self._labels
        config.label2id = {label: number for number, label in config.id2label.items()}

    def _refuse_to_save(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise InputError(
            "save_pretrained would write layers that nobody can load; give the adapter to `lit-spectral export SOURCE "
            "--to merged --output FOLDER`, or --to peft"
        )


def _update(source: Place | Update, backbone: Place | None = None) -> Update:
    where = None if backbone is None else os.fspath(backbone)
    if not isinstance(source, Update):
        return read(os.fspath(source), where)
    source.check_finite("the adapter")
    return source if where is None else replace(source, backbone=where)
