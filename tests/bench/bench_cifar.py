"""Fuse CIFAR-10 parents that ``python -m fxfuse.models_zoo.train`` has trained, and print the comparison.

    uv run python tests/bench/bench_cifar.py RECIPE --parents DIR --data DIR [--methods a,b] [--seeds 0,1,2]
        [--part test|validation] [--samples 1000]

Calibration: unlabelled images drawn per seed from those that the parents were trained on. ``--part validation`` uses
images that no parent saw and that are not the test images: settings are chosen there.
"""

import argparse
import os
import statistics
import time
from collections.abc import Sequence

import torch

from fxfuse import FitSettings, fuse
from fxfuse.device import pick_device
from fxfuse.models_zoo import train
from fxfuse.models_zoo.data import cifar10
from fxfuse.passes.verify import score
from fxfuse.samples import TensorSamples


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the table of one recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=sorted(train.RECIPES))
    parser.add_argument("--data", default=os.environ.get("FXFUSE_DATA"), required="FXFUSE_DATA" not in os.environ)
    parser.add_argument("--parents", required=True)
    parser.add_argument("--cache")
    parser.add_argument("--methods", default="kmeans,hungarian-linear,hungarian-gradient")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--images", type=int, default=10000, help="how many images to judge on")
    parser.add_argument("--part", choices=("test", "validation"), default="test")
    parser.add_argument("--flip", action="store_true", help="also flip calibration images left to right")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    rows: dict[str, list[float]] = {}
    cpu: dict[str, list[float]] = {}
    for seed in (int(s) for s in given.seeds.split(",")):
        parts = train.splits(train.RECIPES[given.recipe], seed, given.data, given.cache)
        parents = train.load_parents(given.parents, given.recipe, seed)
        judged = parts.test if given.part == "test" else parts.validation
        order = torch.randperm(len(judged), generator=torch.Generator().manual_seed(1))[: given.images]
        evaluation = TensorSamples((judged.normalised(order),), judged.labels[order], given.part)
        pool = torch.cat(list(parts.indices))
        pool = pool[torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))]
        samples = cifar10(given.data, True, given.cache).normalised(pool[: given.samples])
        settings = FitSettings(augment=("shift", "flip", "mix")) if given.flip else None
        # Parents, ensembles and the average are the same beside every method.
        for row in fuse(parents, evaluation=evaluation, method="average", seed=seed, device=given.device).scores:
            if row.name != "fused":
                rows.setdefault(row.name, []).append(100 * (row.accuracy or 0.0))
        for method in given.methods.split(","):
            start = time.process_time()
            result = fuse(
                parents, calibration=samples, method=method, seed=seed, device=given.device, fit=settings, compare=False
            )
            cpu.setdefault(method, []).append(time.process_time() - start)
            found = score(method, result.module, evaluation, device=pick_device(given.device))
            rows.setdefault(method, []).append(100 * (found.accuracy or 0.0))
            print(seed, method, found.accuracy, result.timings, *result.notes, flush=True)
    print("| | accuracy | CPU s |\n| --- | --- | --- |")
    for name, found in rows.items():
        spread = f" ±{statistics.stdev(found):.2f}" if len(found) > 1 else ""
        seconds = f"{statistics.mean(cpu[name]):.0f}" if name in cpu else ""
        print(f"| {name} | {statistics.mean(found):.2f}{spread} ({', '.join(f'{f:.2f}' for f in found)}) | {seconds} |")


if __name__ == "__main__":
    main()
