"""Seconds and errors of adding several LoRA adapters at their own rank, beside peft's `svd`, on equal factors.

    python -m benchmarks.merging --shapes mpnet 7b --threads 2 [--json FILE]

Both take turns on one set of random factors. Errors are ‖found − best‖_F over ‖best‖_F of all maps together, with the
float64 sum's best approximation of that rank. Of a large shape one map of each size is run; seconds of the whole model
are then those of each size times how many maps it has, which the table says.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from benchmarks.measure import in_turn, ratio
from lit_spectral.terminal import print_anything
from lit_spectral.updates import Delta, Pair, Update
from lit_spectral.updates.merging import merge


class Shape(NamedTuple):
    """How many maps of each (out, in) a model has, and whether only one of each is run."""

    maps: dict[tuple[int, int], int]
    sampled: bool = False


SHAPES = {
    "tiny": Shape({(64, 48): 2, (96, 64): 1}),
    "mpnet": Shape({(768, 768): 48, (3072, 768): 12, (768, 3072): 12}),
    "7b": Shape({(4096, 4096): 128, (11008, 4096): 64, (4096, 11008): 32}, sampled=True),
}


class Maps(nn.Module):
    """Linear maps of given (out, in), with nothing between them; their weights are 0, since no merge looks at them."""

    def __init__(self, sizes: list[tuple[int, int]]) -> None:
        super().__init__()
        for index, (out, into) in enumerate(sizes):
            layer = nn.Linear(into, out, bias=False, device="meta").to_empty(device="cpu")
            nn.init.zeros_(layer.weight)
            self.add_module(f"map{index}", layer)


def adapted(sizes: list[tuple[int, int]], names: list[str], rank: int) -> PeftModel:
    """Peft's model with adapters whose factors are all random."""
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=[f"map{index}" for index in range(len(sizes))])
    model = get_peft_model(Maps(sizes), config, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    generator = torch.Generator().manual_seed(0)
    for parameter_name, parameter in model.named_parameters():
        if "lora_" in parameter_name:
            parameter.data.normal_(std=parameter.shape[1] ** -0.5, generator=generator)
    return model


def layers(model: PeftModel) -> Iterator[tuple[str, Any]]:
    """Peft's LoRA layers by name."""
    yield from ((name, layer) for name, layer in model.named_modules() if hasattr(layer, "lora_A"))


def updates(model: PeftModel, names: list[str]) -> dict[str, Update]:
    """The same adapters, with their scale in the left factor."""
    found = {}
    for name in names:
        pairs = {
            path: Pair(layer.lora_B[name].weight.data * layer.scaling[name], layer.lora_A[name].weight.data)
            for path, layer in layers(model)
        }
        found[name] = Update({path: Delta(pair) for path, pair in pairs.items()})
    return found


def best(pairs: list[Pair], rank: int) -> tuple[Tensor, Tensor]:
    """Factors of the sum's best approximation, float64: through the SVD of the small core between two QRs."""
    left = torch.cat([pair.left.double() for pair in pairs], 1)
    right = torch.cat([pair.right.double() for pair in pairs])
    q_left, r_left = torch.linalg.qr(left)
    q_right, r_right = torch.linalg.qr(right.T)
    u, sigma, vt = torch.linalg.svd(r_left @ r_right.T)
    return q_left @ (u[:, :rank] * sigma[:rank]), vt[:rank] @ q_right.T


def distance(found: tuple[Tensor, Tensor], exact: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """‖found − exact‖_F² and ‖exact‖_F² of products of thin factors, without forming them."""
    left = torch.linalg.qr(torch.cat([found[0].double(), -exact[0]], 1)).R
    right = torch.linalg.qr(torch.cat([found[1].double(), exact[1]]).T).R
    exact_left, exact_right = torch.linalg.qr(exact[0]).R, torch.linalg.qr(exact[1].T).R
    return float((left @ right.T).square().sum()), float((exact_left @ exact_right.T).square().sum())


def measure(shape: Shape, adapters: int, rank: int, rounds: int) -> dict[str, Any]:
    """Seconds of each round, for all maps of a model, and errors, by contender."""
    seconds = {who: [0.0] * rounds for who in ("ours", "peft")}
    squares = dict.fromkeys(("ours", "peft", "best"), 0.0)
    for size, count in shape.maps.items():
        run = 1 if shape.sampled else count
        taken, found = measure_size([size] * run, adapters, rank, rounds, warm=not shape.sampled)
        for who, times in taken.items():
            seconds[who] = [total + time * count / run for total, time in zip(seconds[who], times, strict=True)]
        squares = {who: total + found[who] * count / run for who, total in squares.items()}
    errors = {who: (squares[who] / squares["best"]) ** 0.5 for who in seconds}
    return {"seconds": seconds, "errors": errors}


def measure_size(
    sizes: list[tuple[int, int]], adapters: int, rank: int, rounds: int, warm: bool
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of each round by contender, and ‖found − best‖_F² of each beside ‖best‖_F²."""
    names = [f"adapter{index}" for index in range(adapters)]
    weights = [(1.0, 1.0, -0.5, 0.7)[index % 4] for index in range(adapters)]
    model = adapted(sizes, names, rank)
    given = updates(model, names)
    numbers = itertools.count()
    results: dict[str, Any] = {}

    def ours() -> None:
        results["ours"] = merge(given, "add", weights, rank=rank).update

    def theirs() -> None:
        results["peft"] = f"merged{next(numbers)}"
        model.add_weighted_adapter(names, weights, results["peft"], combination_type="svd", svd_rank=rank)

    seconds = in_turn({"ours": ours, "peft": theirs}, rounds, torch.device("cpu"), warm)
    squares = dict.fromkeys(("ours", "peft", "best"), 0.0)
    for path, layer in layers(model):
        scaled = [given[name].changes[path].scaled(weight) for name, weight in zip(names, weights, strict=True)]
        exact = best([delta.factors for delta in scaled if delta.factors], rank)
        scale, merged = layer.scaling[results["peft"]], results["peft"]
        theirs_found = (layer.lora_B[merged].weight.data * scale, layer.lora_A[merged].weight.data)
        for who, found in (("ours", results["ours"].changes[path].factors), ("peft", theirs_found)):
            off, whole = distance(found, exact)
            squares[who] += off
        squares["best"] += whole
    return seconds, squares


def line(name: str, shape: Shape, found: dict[str, Any]) -> str:
    """One row of the table, in Markdown."""
    seconds = {who: statistics.median(taken) for who, taken in found["seconds"].items()}
    times = ratio(found["seconds"]["peft"], found["seconds"]["ours"])
    maps = len(shape.maps) if shape.sampled else sum(shape.maps.values())
    run = f"{maps} of {sum(shape.maps.values())} maps, times their numbers" if shape.sampled else f"{maps} maps"
    cells = [name, run, *(f"{seconds[who]:.3f}" for who in ("ours", "peft"))]
    cells.append(f"{times.median:.0f} ({times.low:.0f}–{times.high:.0f}, {times.rounds} rounds)")
    cells += [f"{found['errors'][who]:.1e}" for who in ("ours", "peft")]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure what the command line asks for, and print the table."""
    print_anything()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["mpnet", "7b"])
    parser.add_argument("--adapters", type=int, default=4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="file for the raw figures")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    print(f"{platform.processor() or platform.machine()}, {options.threads} threads, torch {torch.__version__}")
    print("| shape | run | ours, s | peft, s | times faster | error, ours | error, peft |\n" + "|---" * 7 + "|")
    results = {}
    for name in options.shapes:
        results[name] = measure(SHAPES[name], options.adapters, options.rank, options.rounds)
        print(line(name, SHAPES[name], results[name]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
