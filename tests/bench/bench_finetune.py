"""Fine-tune what methods make of OTFusion's two MNIST networks, beside the better parent on the same budget.

    python tests/bench/bench_finetune.py --data DIR [--methods a,b] [--epochs 1,3] [--seeds 3] [--part test|validation]

One-shot accuracy, and that after so many epochs with labels on the 60,000 training images (a tenth of them judges): SGD
with rate 0.01, momentum 0.9, batches of 256, as the peers' authors have it. A method that needs data gets all of these
images, without labels. ``--part validation`` trains on the first 50,000 and scores on the others.
"""

import argparse
import os
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from bench_mnist import parents_of

from fxfuse import FinetuneSettings, FitSettings, fuse
from fxfuse.models_zoo.data import mnist


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one row per method and a last one for the control."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("FXFUSE_DATA"), required="FXFUSE_DATA" not in os.environ)
    parser.add_argument(
        "--methods",
        default="average,ot-weights,rebasin-weights,transplant,transplant-read,hungarian-linear,hungarian-gradient",
    )
    parser.add_argument("--epochs", default="1,3")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--augment", default="none")
    parser.add_argument("--part", choices=("test", "validation"), default="test")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    root = Path(given.data)
    training = mnist(root, True)
    if given.part == "test":
        some, judged = training, mnist(root, False)
    else:
        some, judged = training.subset(torch.arange(50_000)), training.subset(torch.arange(50_000, 60_000))
    epochs = [int(part) for part in given.epochs.split(",")]
    rows: dict[str, dict[str, list[float]]] = {}
    for method in given.methods.split(","):
        for seed in range(given.seeds):
            for count in epochs:
                result = fuse(
                    parents_of(root, "IID"),
                    calibration=(some.normalised(), some.labels),
                    evaluation=(judged.normalised(), judged.labels),
                    method=method,
                    seed=seed,
                    fit=FitSettings(augment=given.augment),
                    finetune=FinetuneSettings(
                        epochs=count, towards="labels", lr=0.01, schedule="constant", batch_size=256
                    ),
                )
                found = {score.name: 100 * (score.accuracy or 0.0) for score in result.scores}
                for name, row in (("fused", method), ("best parent, fine-tuned", "the better parent alone")):
                    rows.setdefault(row, {}).setdefault(f"{count} epochs", []).append(found[name])
                rows[method].setdefault("one-shot", []).append(found["fused, before fine-tuning"])
    columns = ["one-shot", *(f"{count} epochs" for count in epochs)]
    print("| | " + " | ".join(columns) + " |\n|" + " --- |" * (len(columns) + 1))
    for row, figures in rows.items():
        cells = [shown(figures[column]) if column in figures else "" for column in columns]
        print(f"| {row} | " + " | ".join(cells) + " |")


def shown(figures: Sequence[float]) -> str:
    """Mean and sample standard deviation."""
    spread = statistics.stdev(figures) if len(figures) > 1 else 0.0
    return f"{statistics.mean(figures):.2f} ±{spread:.2f}"


if __name__ == "__main__":
    main()
