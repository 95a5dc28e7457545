"""Fuse networks that were trained on from one base model: where averages, task arithmetic and TIES belong.

    uv run python tests/bench/bench_ancestor.py --data DIR [--seeds 3] [--part test|validation] [--methods a,b]

MNIST, MLPs 784-256-10. The base sees 5,000 images of all digits for one epoch (Adam, 1e-3, batch 128); each parent goes
on from it for two epochs with images of its own, nine tenths of them of its own digits (two parents: five digits each;
four: two or three). 400 balanced calibration images without labels for the methods that need data. Everything is
trained anew per seed.
"""

import argparse
import copy
import os
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from bench_labels import balanced, train

from fxfuse import METHODS, fuse
from fxfuse.models_zoo.data import class_mix, mnist
from fxfuse.models_zoo.mlp import mlp

CASES: dict[str, Sequence[Sequence[int]]] = {
    "two parents": (range(5), range(5, 10)),
    "four parents": ((0, 1), (2, 3), (4, 5, 6), (7, 8, 9)),
}
SHARE = 0.9
"""The part of a digit's images that goes to the parent whose digit it is; the others share the rest."""

TABLE = "average,average-linear,task-arithmetic,ties,rebasin-weights,ot-weights,hungarian-read,hungarian-gradient"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("FXFUSE_DATA"), required="FXFUSE_DATA" not in os.environ)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--part", choices=("test", "validation"), default="test")
    parser.add_argument("--methods", default=TABLE)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    training = mnist(Path(given.data), True)
    judged = mnist(Path(given.data), False) if given.part == "test" else training.subset(torch.arange(50_000, 60_000))
    inputs, labels = training.normalised(torch.arange(50_000)), training.labels[:50_000]
    evaluation = (judged.normalised(), judged.labels)
    columns: list[dict[str, list[float]]] = []
    for own in CASES.values():
        found: dict[str, list[float]] = {}
        for seed in range(given.seeds):
            torch.manual_seed(seed)
            start = torch.randperm(len(labels))[:5000]
            base = train(mlp((784, 256, 10)), range(10), inputs[start], labels[start], 1, seed)
            shares = [[SHARE if c in known else (1 - SHARE) / (len(own) - 1) for c in range(10)] for known in own]
            parts = class_mix(labels, shares, seed)
            parents = [
                train(copy.deepcopy(base), range(10), inputs[part], labels[part], 2, seed + 1 + p)
                for p, part in enumerate(parts)
            ]
            seen = inputs[balanced(labels, 400, seed)]
            with torch.no_grad():
                right = base(evaluation[0]).argmax(1) == evaluation[1]
            found.setdefault("the base", []).append(100 * float(right.float().mean()))
            for method in given.methods.split(","):
                result = fuse(
                    parents,
                    calibration=seen if METHODS[method].needs_data else None,
                    base=base if METHODS[method].needs_base else None,
                    method=method,
                    evaluation=evaluation,
                    seed=seed,
                )
                for row in result.scores:
                    name = f"`{method}`" if row.name == "fused" else row.name
                    if name == "average" or (name != f"`{method}`" and method != given.methods.split(",")[0]):
                        continue
                    name = "parents" if name.startswith("parent") else name
                    found.setdefault(name, []).append(100 * (row.accuracy or 0.0))
        columns.append(found)
    print("| MNIST, one base | " + " | ".join(CASES) + " |\n|" + " --- |" * (len(CASES) + 1))
    for name in columns[0]:
        cells = []
        for found in columns:
            values = found[name]
            spread = f" ±{statistics.stdev(values):.2f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.2f}{spread}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
