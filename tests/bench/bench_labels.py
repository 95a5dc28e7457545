"""Fuse networks that know different classes, and print accuracies over the union of the classes.

    uv run python tests/bench/bench_labels.py --data DIR [--seeds 3] [--part test|validation]

MNIST: MLPs 784-256 trained for three epochs (Adam, 1e-3, batch 128) on those of the first 50,000 training images
whose digits they know; 400 balanced calibration images of all digits, without labels, per seed. Digits:
``digits_net`` trained for 30 epochs on two thirds of scikit-learn's digits, 200 of them for calibration, judged on
the other third. The parents' seeds are fixed; the seeds are those of the calibration images and of the fusion.
``--part validation`` judges MNIST on the last 10,000 training images.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxfuse import fuse
from fxfuse.models_zoo.convnets import digits_net
from fxfuse.models_zoo.data import digits, mnist
from fxfuse.models_zoo.mlp import mlp

CASES: dict[str, Sequence[Sequence[int]]] = {
    "0-4, 5-9": (range(5), range(5, 10)),
    "0-5, 4-9": (range(6), range(4, 10)),
    "0-9, 0-4": (range(10), range(5)),
    "0-3, 3-6, 6-9": (range(4), range(3, 7), range(6, 10)),
}


def train(
    network: nn.Module, known: Sequence[int], inputs: Tensor, labels: Tensor, epochs: int, seed: int
) -> nn.Module:
    """A network trained on the samples of the classes that it is to know."""
    table = torch.full((10,), -1)
    table[list(known)] = torch.arange(len(known))
    own = (table[labels] >= 0).nonzero()[:, 0]
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    network.train()
    for _ in range(epochs):
        for chunk in torch.split(own[torch.randperm(len(own), generator=generator)], 128):
            loss = F.cross_entropy(network(inputs[chunk]), table[labels[chunk]])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.eval()


def balanced(labels: Tensor, count: int, seed: int) -> Tensor:
    """Indices of ``count`` samples, equally many per class."""
    generator = torch.Generator().manual_seed(seed)
    members = [(labels == label).nonzero()[:, 0] for label in range(10)]
    return torch.cat([m[torch.randperm(len(m), generator=generator)[: count // 10]] for m in members])


def table(
    title: str,
    build: Callable[[int], nn.Module],
    epochs: int,
    count: int,
    data: Sequence[Tensor],
    seeds: int,
    start: int,
) -> None:
    """All cases on one data set: inputs and labels to train on, inputs and labels to judge on."""
    inputs, labels, judged, truth = data
    rows: dict[str, list[str]] = {}
    for known in CASES.values():
        parents = []
        for seed, own in enumerate(known):
            torch.manual_seed(seed)
            parents.append(train(build(len(own)), own, inputs, labels, epochs, seed))
        found: dict[str, list[float]] = {}
        for seed in range(seeds):
            began = time.process_time()
            seen = inputs[balanced(labels[:start], count, seed)]
            result = fuse(parents, calibration=seen, labels=known, evaluation=(judged, truth), seed=seed)
            found.setdefault("CPU s, comparison and all", []).append(time.process_time() - began)
            for row in result.scores:
                found.setdefault("parents" if row.name.startswith("parent") else row.name, []).append(
                    100 * (row.accuracy or 0.0)
                )
        alone = found.pop("parents")[: len(parents)]
        rows.setdefault("parents", []).append(", ".join(f"{value:.1f}" for value in alone))
        for name, values in found.items():
            spread = f" ±{statistics.stdev(values):.2f}" if len(values) > 1 else ""
            rows.setdefault(name, []).append(f"{statistics.mean(values):.2f}{spread}")
    print(f"\n| {title} | " + " | ".join(CASES) + " |\n|" + " --- |" * (len(CASES) + 1))
    for name, cells in rows.items():
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Both data sets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("FXFUSE_DATA"), required="FXFUSE_DATA" not in os.environ)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--part", choices=("test", "validation"), default="test")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    training = mnist(Path(given.data), True)
    judged = mnist(Path(given.data), False) if given.part == "test" else training.subset(torch.arange(50_000, 60_000))
    first = training.subset(torch.arange(50_000))
    data = (first.normalised(), first.labels, judged.normalised(), judged.labels)
    table("MNIST", lambda classes: mlp((784, 256, classes)), 3, 400, data, given.seeds, 50_000)
    small = digits()
    order = torch.randperm(len(small), generator=torch.Generator().manual_seed(0))
    one, two = small.subset(order[:1200]), small.subset(order[1200:])
    data = (one.normalised(), one.labels, two.normalised(), two.labels)
    table("digits", lambda classes: digits_net(classes=classes), 30, 200, data, given.seeds, 1200)


if __name__ == "__main__":
    main()
