"""All parents in one graph, one of them chosen, and what lies between that and one network: accuracy against size.

    uv run python tests/bench/bench_branches.py --data DIR [--methods a,b] [--seeds 3] [--part test|validation]

Parents, calibration images (400, balanced, unlabelled, drawn per seed) and scaling are those of ``bench_mnist.py``,
beside it. Methods: ``ensemble``; ``select`` with every router; ``partial`` and ``partial-neurons`` with budgets
relative to one parent's parameters. Size is the number of parameters relative to one parent.
"""

import argparse
import os
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from bench_mnist import GROUPS, balanced, parents_of

from fxfuse import fuse
from fxfuse.models_zoo.data import mnist

CASES = [
    ("ensemble", {}),
    *(("select", {"router": router}) for router in ("confidence", "distance", "gate")),
    *(("partial", {"budget": budget}) for budget in (2.0, 1.4, 1.0)),
    *(("partial-neurons", {"budget": budget}) for budget in (2.0, 1.4)),
]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("FXFUSE_DATA"), required="FXFUSE_DATA" not in os.environ)
    parser.add_argument("--groups", default=",".join(GROUPS))
    parser.add_argument("--methods", default=",".join(dict(CASES)))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--part", choices=("test", "validation"), default="test")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    root = Path(given.data)
    training = mnist(root, True)
    judged = mnist(root, False) if given.part == "test" else training.subset(torch.arange(50_000, 60_000))
    data = (judged.normalised(), judged.labels)
    groups = given.groups.split(",")
    print("| | " + " | ".join(groups) + " |\n|" + " --- |" * (len(groups) + 1))
    for method, options in CASES:
        if method not in given.methods.split(","):
            continue
        cells = []
        for group in groups:
            parents = parents_of(root, group)
            found, size = [], 0.0
            for seed in range(given.seeds):
                seen = training.normalised(balanced(training, 400, seed))
                result = fuse(parents, calibration=seen, method=method, seed=seed, evaluation=data, **options)
                row = next(row for row in result.scores if row.name == "fused")
                found.append(100 * (row.accuracy or 0.0))
                size = (row.parameters or 0) / (result.scores[0].parameters or 1)
            spread = f" ±{statistics.stdev(found):.2f}" if len(found) > 1 else ""
            cells.append(f"{statistics.mean(found):.2f}{spread} ({size:.2f}x)")
        words = ", ".join(str(value) for value in options.values())
        print(f"| {method} {words} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
