"""Seconds and errors of partial SVDs, beside `torch.linalg.svd` and peft's PiSSA initialisation.

    python -m benchmarks.svd --backbones FOLDER … --random 4096 [--json FILE]

One matrix of each shape that a backbone's default targets have. All contenders take turns on one
matrix, and the table gives the median of their times. Errors are against a float64 SVD.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModel

from lit_spectral.adapters import find_targets
from lit_spectral.adapters.linear import weight_matrix
from lit_spectral.backbones import load_model
from lit_spectral.spectra import Part, SingularTriplets
from lit_spectral.spectra.cache import SVDCache
from lit_spectral.spectra.partial_svd import partial_svd, singular_values
from lit_spectral.terminal import print_anything


def matrices(backbones: list[str], random: list[int]) -> Iterator[tuple[str, Tensor]]:
    """The first target of each shape of each backbone, in float32, and Gaussian square matrices."""
    for folder in backbones:
        model, _ = load_model(AutoModel, folder)
        shapes = set()
        for layer in find_targets(model, None).values():
            weight = weight_matrix(layer).contiguous()
            if weight.shape not in shapes:
                shapes.add(weight.shape)
                yield f"{Path(folder).name} {weight.shape[0]} x {weight.shape[1]}", weight
    for size in random:
        yield f"random {size} x {size}", torch.randn(size, size, generator=torch.Generator().manual_seed(0))


def peft_pissa(weight: Tensor, rank: int) -> None:
    """What peft does to start PiSSA on one layer: a full SVD."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight.clone()  # peft subtracts the components in place
    get_peft_model(nn.Sequential(layer), LoraConfig(r=rank, init_lora_weights="pissa", target_modules=["0"]))


def measure(weight: Tensor, rank: int, repeats: int) -> dict[str, Any]:
    """Median seconds of each contender, and the errors of ours."""
    with tempfile.TemporaryDirectory() as folder:
        contenders: dict[str, Callable[[], object]] = {
            "torch svd": lambda: torch.linalg.svd(weight, full_matrices=False),
            "peft pissa": lambda: peft_pissa(weight, rank),
            "leading": lambda: partial_svd(weight, "top", rank),
            "smallest": lambda: partial_svd(weight, "bottom", rank),
            "all values": lambda: singular_values(weight),
            # A new object, as in a second run of a program: hashing, reading and checking all count.
            "cached": lambda: SVDCache(folder).singular_triplets({"": weight}, "top", rank),
        }
        contenders["cached"]()  # the first run writes
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(repeats):
            for name, contender in contenders.items():
                started = time.perf_counter()
                contender()
                times[name].append(time.perf_counter() - started)
    return {"seconds": {name: statistics.median(taken) for name, taken in times.items()}, **errors(weight, rank)}


def errors(weight: Tensor, rank: int) -> dict[str, float]:
    """Largest relative error of values, and largest angle of subspaces, of each part."""
    u, sigma, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    found: dict[str, float] = {"all values error": _relative(singular_values(weight), sigma)}
    parts: dict[str, tuple[Part, slice]] = {
        "leading": ("top", slice(rank)),
        "smallest": ("bottom", slice(len(sigma) - rank, None)),
    }
    for name, (part, kept) in parts.items():
        ours, estimate = partial_svd(weight, part, rank)
        exact = SingularTriplets(u[:, kept], sigma[kept], vh[kept].T)
        found[f"{name} error"] = _relative(ours.sigma, exact.sigma)
        found[f"{name} angle"] = max(_angle(ours.u, exact.u), _angle(ours.v, exact.v))
        found[f"{name} estimated angle"] = float(estimate)
    return found


def _relative(found: Tensor, exact: Tensor) -> float:
    return float(((found - exact).abs() / exact).max())


def _angle(found: Tensor, exact: Tensor) -> float:
    return float(torch.linalg.matrix_norm(exact - found @ (found.T @ exact), 2).clamp_max(1).asin())


def table(results: dict[str, dict[str, Any]], rank: int) -> str:
    """Markdown: seconds, how many times faster than torch's full SVD, and errors."""
    head = ["matrix", "torch SVD", "peft PiSSA", f"leading {rank}", "error, angle", f"smallest {rank}", "error, angle"]
    rows = [[*head, "all values", "error", f"leading {rank} from cache"]]
    rows.append(["---"] * len(rows[0]))
    for name, result in results.items():
        seconds = result["seconds"]
        ours = {key: f"{seconds[key]:.4f} s, {seconds['torch svd'] / seconds[key]:.1f} ×" for key in seconds}
        off = {key: f"{value:.0e}" for key, value in result.items() if key != "seconds"}
        rows.append([name, f"{seconds['torch svd']:.4f} s", f"{seconds['peft pissa']:.4f} s"])
        for part in ("leading", "smallest"):
            rows[-1] += [ours[part], f"{off[f'{part} error']}, {off[f'{part} angle']}"]
        rows[-1] += [ours["all values"], off["all values error"], ours["cached"]]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Measure what the command line asks for, and print the table."""
    print_anything()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="*", default=[], help="folders in Hugging Face format")
    parser.add_argument("--random", nargs="*", type=int, default=[], help="sides of Gaussian matrices")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file for the raw figures")
    options = parser.parse_args()

    results = {}
    for name, weight in matrices(options.backbones, options.random):
        print(name, flush=True)
        results[name] = measure(weight, options.rank, options.repeats)
    print(
        f"\n{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    print(table(results, options.rank))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
