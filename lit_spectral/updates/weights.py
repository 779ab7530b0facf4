"""A backbone's weights as its files have them: looked up by name in the full model, one at a time, with no model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lit_spectral.adapters.linear import VALUES, is_linear, is_transposed
from lit_spectral.backbone_digest import backbone_digest, same_backbone
from lit_spectral.errors import InputError, reason_of
from lit_spectral.updates.model_folder import model_folder, skeleton, weight_files
from lit_spectral.updates.update import Update, name_in

__all__ = ["Weights", "ties_of"]


class Weights(Mapping[str, Tensor]):
    """W₀ (out, in) of every linear map, by its path in the full Hugging Face model, in the files' dtype.

    Paths are those of `architecture`, whatever the files' own: keys may lack or have the base model's prefix,
    and be named as transformers once did. Of a path too the prefix may lack or be there.

    Args:
        backbone: a folder in Hugging Face format, `tiny`, or a hub id that has been downloaded.
        architecture: the model's class, such as `BertForSequenceClassification`; empty for the config's.
        labels: names of classes by number, in place of the config's.

    Attributes:
        folder: where the files lie.
        config: of transformers, with `labels`.
        skeleton: the model on the meta device.
        maps: its linear maps by path.
        shapes: of its tensors by name.
        files: from a file's name to its keys.

    Raises:
        InputError: no safetensors there, a damaged one, a pickle, weights that are codes, or a config that
            transformers makes no model of. KeyError for a path that is no linear map's.
    """

    def __init__(self, backbone: str, architecture: str = "", labels: Mapping[Any, str] | None = None) -> None:
        self.folder = model_folder(backbone)
        self.config, self.skeleton = skeleton(self.folder, architecture, labels)
        # A forward of its own, as Falcon's, can't be tried without values.
        named: Iterable[tuple[str, nn.Module]] = self.skeleton.named_modules()
        self.maps = {path: each for path, each in named if isinstance(each, nn.Linear) or is_transposed(each)}
        state: dict[str, Tensor] = self.skeleton.state_dict()
        self.shapes = {name: tensor.shape for name, tensor in state.items()}
        self._ties = ties_of(self.skeleton)
        self._opened: tuple[str, Any] | None = None
        self.files = {file: list(self._file(file).keys()) for file in weight_files(self.folder)}
        self._names = self._named(state)
        named_keys = ((self._names[key], (file, key)) for file, keys in self.files.items() for key in keys)
        self._places = {name: place for name, place in named_keys if name is not None}

    def __getitem__(self, path: str) -> Tensor:
        """W₀ (out, in), a view of the mapped file."""
        known = self.path(path)
        weight = self.tensor(f"{known}.weight")
        if weight is None:
            raise InputError(f"backbone: the files of {self.folder} lack {known}.weight; give undamaged ones")
        self.check_map(f"{known}.weight", weight)
        return weight.mT if is_transposed(self.maps[known]) else weight

    def __iter__(self) -> Iterator[str]:
        return iter(self.maps)

    def __len__(self) -> int:
        return len(self.maps)

    def __contains__(self, path: object) -> bool:
        try:
            return bool(self.path(str(path)))
        except KeyError:
            return False

    def path(self, path: str) -> str:
        """The path as it is in the model, whether the base model's prefix lacks or not; KeyError if there is none."""
        return name_in(self.skeleton, path, self.maps)

    def digest(self) -> str:
        """As `backbone_digest` of the loaded model; empty where that can't be known without loading it.

        So it is where transformers puts weights together of several tensors, or a map's forward is to be tried.
        """
        together = any(name is not None and name not in self.shapes for name in self._names.values())
        if together or not all(is_linear(module) for module in self.maps.values()):
            return ""
        names = {id(parameter): name for name, parameter in self.skeleton.named_parameters()}
        new = {key for key, name in names.items() if not any(map(self.lies, (name, *self.tied(name))))}

        def value(parameter: nn.Parameter) -> Tensor:
            tensor = self.tensor(names[id(parameter)])
            assert tensor is not None
            return tensor

        return backbone_digest(self.skeleton.base_model, new, value)

    def check_digest(self, update: Update) -> None:
        """InputError where it is known that these aren't the weights that the update was trained on."""
        if update.digest and (ours := self.digest()) and not same_backbone(update.digest, ours):
            raise InputError(
                f"the adapter was trained on a backbone whose weights differ from those in {self.folder}; give its own "
                "--backbone"
            )

    def check_fits(self, update: Update) -> None:
        """InputError unless every change is that of a map of its shape, and what was trained whole is the model's.

        And the backbone is the one that the update was trained on, where that is known.
        """
        self.check_digest(update)
        model = type(self.skeleton).__name__
        for path, delta in update.changes.items():
            if path not in self:
                raise InputError(f"{path} is no linear map of {model} in {self.folder}; give its own --backbone")
            known = self.path(path)
            shape = self.shapes[f"{known}.weight"]
            if delta.shape != tuple(shape[::-1] if is_transposed(self.maps[known]) else shape):
                raise InputError(
                    f"the change of {path} is {delta.shape[0]} x {delta.shape[1]}, its weight in {self.folder} "
                    f"{' x '.join(map(str, shape))}; give its own --backbone"
                )
        for name, tensor in update.whole.items():
            shape_here = self.shapes.get(name)
            if tensor.shape != shape_here:
                here = f"is {tuple(shape_here)}" if shape_here is not None else "isn't there"
                raise InputError(
                    f"{name} of the adapter is {tuple(tensor.shape)}, and {here} in {model} of {self.folder}; "
                    "give its own --backbone"
                )

    def name(self, key: str) -> str | None:
        """What a key of the files is called in the model, or None if that has nothing of it.

        One part of several that transformers puts together, as some experts, keeps its key.
        """
        return self._names[key]

    def tied(self, name: str) -> tuple[str, ...]:
        """All names of a parameter, this one too."""
        return self._ties.get(name, (name,))

    def lies(self, name: str) -> bool:
        """Whether the files have a tensor under this very name."""
        return name in self._places

    def tensor(self, name: str) -> Tensor | None:
        """A tensor as it lies in the files, a view of them; None if they lack it."""
        place = next((self._places[each] for each in (name, *self.tied(name)) if each in self._places), None)
        return None if place is None else self.read(*place)

    def read(self, file: str, key: str) -> Tensor:
        """What lies under a key of a file."""
        try:
            tensor: Tensor = self._file(file).get_tensor(key)
        except SafetensorError as error:
            raise _damaged(self.folder / file, error) from error
        return tensor

    def check_map(self, name: str, tensor: Tensor) -> None:
        """InputError unless a map's weight from the files has the model's shape and floats for entries."""
        if tensor.dtype not in VALUES or tensor.shape != self.shapes[name]:
            raise InputError(
                f"backbone: {name} in {self.folder} is {tuple(tensor.shape)} of {tensor.dtype} and not "
                f"{tuple(self.shapes[name])} of floats; give the files that are neither quantised nor another model's"
            )

    def others(self) -> Iterator[tuple[str, Tensor]]:
        """Name in the model and value of all that is no linear map's weight, one at a time.

        What transformers puts together of several tensors, as some experts, goes by the keys of the files.
        """
        for name, place in self._places.items():
            if not self._is_map(name):
                yield name, self.read(*place)

    def other(self, name: str) -> Tensor | None:
        """One of `others`, or None."""
        return None if self._is_map(name) else self.tensor(name)

    def _is_map(self, name: str) -> bool:
        return name.endswith(".weight") and name.removesuffix(".weight") in self.maps

    def about(self) -> dict[str, Any]:
        """`architecture`, the class of the model, and `config_labels`, names of its classes by number."""
        return {"architecture": type(self.skeleton).__name__, "config_labels": self.config.id2label}

    def _file(self, file: str) -> Any:
        if self._opened is None or self._opened[0] != file:
            self._opened = None  # unmapped before the next one is mapped
            try:
                self._opened = file, safe_open(self.folder / file, framework="pt")
            except (SafetensorError, OSError) as error:
                raise _damaged(self.folder / file, error) from error
        return self._opened[1]

    def _named(self, state: dict[str, Tensor]) -> dict[str, str | None]:
        """From a key of the files to its `name` in the model, as `from_pretrained` finds it."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

        mapping = get_model_conversion_mapping(self.skeleton)
        renamings = [each for each in mapping if isinstance(each, WeightRenaming)]
        converters = [each for each in mapping if isinstance(each, WeightConverter)]
        prefix = self.skeleton.base_model_prefix
        found: dict[str, str | None] = {}
        for key in (key for keys in self.files.values() for key in keys):
            name, part_of = rename_source_key(key, renamings, converters, prefix, state)
            if name not in state and key in state:
                name, part_of = rename_source_key(key, [], [], prefix, state)
            found[key] = key if part_of is not None else name if name in state else None
        return found


def ties_of(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """From each name of a parameter that has several to all of them."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name: tuple(group) for group in names.values() if len(group) > 1 for name in group}


def _damaged(file: Path, error: Exception) -> InputError:
    return InputError(f"backbone: {file} can't be read ({reason_of(error)}); give undamaged files")
