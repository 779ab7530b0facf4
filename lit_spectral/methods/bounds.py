"""Bounds on singular values of ΔW, in the words of their settings, as a number for each map."""

from __future__ import annotations

from typing import NamedTuple

from lit_spectral.errors import InputError
from lit_spectral.methods.spectra import Spectra

__all__ = ["LARGEST", "Bound", "Measure", "check_bound", "read_bound", "resolve_bound"]

# Above it, products leave the range of float32.
LARGEST = 1e18

# A number, a quartile of W₀'s own singular values ("q1" … "q4"), or one of MEASURES, as in {"quantile": 0.6}.
Bound = float | str | dict[str, float]

# What a bound may be a part of: of each map's own.
MEASURES = ("quantile", "of_norm", "of_outputs")


class Measure(NamedTuple):
    """What of a map a bound goes by, one of MEASURES, or "" for a number that is the bound of all; and the number."""

    name: str
    number: float


def read_bound(bound: Bound) -> Measure:
    """What a bound says.

    Raises:
        InputError: it is spelled otherwise.
        ValueError: a quantile below 0 or above 1, another number that is not finite and above 0.
    """
    if isinstance(bound, str):
        if bound not in {"q1", "q2", "q3", "q4"}:
            raise InputError(
                "a bound is a number, q1, q2, q3, q4, {quantile: 0.6}, {of_norm: 0.05} or {of_outputs: 0.1}, not "
                f"{bound!r}"
            )
        # q1 is the 25th percentile and q4 the largest value (FCLoRA §3.2 writes σ^(1) … σ^(4)).
        bound = {"quantile": int(bound[1]) / 4}
    if not isinstance(bound, dict):
        return Measure("", _checked(float(bound), ""))
    if len(bound) != 1 or next(iter(bound)) not in MEASURES:
        raise InputError(
            f"a bound by each map is written {{quantile: 0.6}}, {{of_norm: 0.05}} or {{of_outputs: 0.1}}, not {bound}"
        )
    ((name, number),) = bound.items()
    if name == "quantile" and not 0 <= number <= 1:
        raise ValueError(f"a quantile lies between 0 and 1, not {number}")
    if name != "quantile" and not 0 < number < LARGEST:
        raise ValueError(f"{name} is finite and above 0, and below {LARGEST:g}, not {number}")
    return Measure(name, float(number))


def check_bound(setting: str, bound: Bound) -> None:
    """InputError, naming the setting, for what is no bound whatever the map is."""
    try:
        read_bound(bound)
    except (ValueError, TypeError) as error:
        raise InputError(f"{setting}: {error}") from None


def resolve_bound(bound: Bound, spectra: Spectra, name: str) -> float:
    """A bound on ‖ΔW‖₂, or on the singular values that ΔW is made of, as a number, for the map of this name.

    - a number is the same for all maps.
    - `{quantile: q}`: that quantile of W₀'s own singular values, counted upwards, in [0, 1]; q1 … q4 are quartiles.
    - `{of_norm: c}`: c ‖W₀‖₂, so that ‖ΔW‖₂ ≤ c ‖W₀‖₂.
    - `{of_outputs: c}`: c rms‖W₀ x‖ / rms‖x‖ over the inputs x that the unchanged map gets while the model reads, so
      that rms‖ΔW x‖ ≤ ‖ΔW‖₂ rms‖x‖ ≤ c rms‖W₀ x‖ over them: at most that part of what the map answers anyway.

    Raises:
        InputError: as `read_bound`.
        ValueError: as `read_bound`; a result that is not finite and above 0; a map that is given nothing.
    """
    measure, number = read_bound(bound)
    if measure == "quantile":
        number = spectra.quantile(name, number)
    elif measure == "of_norm":
        number *= spectra.norm(name)
    elif measure == "of_outputs":
        number *= spectra.input_gain(name)
    return _checked(number, f" ({bound})" if measure else "")


def _checked(number: float, by: str) -> float:
    if not 0 < number < LARGEST:
        raise ValueError(
            f"a bound on singular values must be finite and above 0, and below {LARGEST:g}, not {number:g}{by}"
        )
    return number
