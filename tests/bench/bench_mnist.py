"""Fuse the MNIST MLPs that the authors of two papers trained, and print accuracy and CPU time beside the peers'.

    uv run python tests/bench/bench_mnist.py --data DIR [--methods a,b] [--seeds 3] [--part test|validation]

The parents, the 400 calibration images (balanced, unlabelled, drawn per seed from the first 50,000 training images)
and the input scaling are those of the peers' measurements. ``--part validation`` scores on the last 10,000 training
images instead of the test images: settings are chosen there. A method that needs no data gets none. CPU seconds are
process time of ``fxfuse.fuse`` on one thread, with evaluation apart and after one warm-up call. The peers' figures were
measured with the authors' own code.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fxfuse import METHODS as METHODS_TABLE
from fxfuse import fuse
from fxfuse.models_zoo.data import Images, mnist
from fxfuse.models_zoo.mlp import load_neuron_interpolation, load_otfusion

GROUPS = {
    "2: 0+1": ("neuron-interpolation", "split2_model{}.safetensors", (0, 1), 94.59, 8.0),
    "4: 0+1": ("neuron-interpolation", "split4_model{}.safetensors", (0, 1), 95.44, 8.0),
    "4: all": ("neuron-interpolation", "split4_model{}.safetensors", (0, 1, 2, 3), 95.54, 19.0),
    "IID": ("otfusion", "mnist_mlp_{}.safetensors", (0, 1), 96.28, 0.3),
}
"""Folder, file names, parents, the best peer's accuracy, and the CPU seconds that it took."""
METHODS = ",".join(name for name, preset in METHODS_TABLE.items() if not preset.needs_base)


def parents_of(root: Path, group: str) -> list[nn.Module]:
    """The published parents of one group."""
    folder, pattern, which, _, _ = GROUPS[group]
    load: Callable[[Path], nn.Module] = load_otfusion if folder == "otfusion" else load_neuron_interpolation
    return [load(root / "parents" / folder / pattern.format(i)).eval() for i in which]


def balanced(images: Images, count: int, seed: int) -> Tensor:
    """Indices of ``count`` images among the first 50,000, equally many per class."""
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label in range(10):
        members = (images.labels[:50_000] == label).nonzero()[:, 0]
        chosen.append(members[torch.randperm(len(members), generator=generator)[: count // 10]])
    return torch.cat(chosen)


def accuracy(answer: Callable[[Tensor], Tensor], inputs: Tensor, labels: Tensor) -> float:
    """Percent of the largest outputs that are right."""
    with torch.no_grad():
        return 100 * float((answer(inputs).argmax(1) == labels).float().mean())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("FXFUSE_DATA"), required="FXFUSE_DATA" not in os.environ)
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--groups", default=",".join(GROUPS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--part", choices=("test", "validation"), default="test")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    root = Path(given.data)
    training = mnist(root, True)
    judged = mnist(root, False) if given.part == "test" else training.subset(torch.arange(50_000, 60_000))
    inputs, labels = judged.normalised(), judged.labels
    groups = given.groups.split(",")
    fuse(parents_of(root, groups[0]), calibration=training.normalised(balanced(training, 50, 0)))  # warm-up
    print("| | " + " | ".join(groups) + " | CPU s |\n|" + " --- |" * (len(groups) + 2))
    rows: dict[str, list[str]] = {}
    for group in groups:
        parents = parents_of(root, group)
        rows.setdefault("parents", []).append(", ".join(f"{accuracy(p, inputs, labels):.2f}" for p in parents))
        soft = accuracy(lambda x, ps=parents: sum(p(x).softmax(1) for p in ps), inputs, labels)
        raw = accuracy(lambda x, ps=parents: sum(p(x) for p in ps), inputs, labels)
        rows.setdefault("ensemble, mean probabilities", []).append(f"{soft:.2f}")
        rows.setdefault("ensemble, mean logits", []).append(f"{raw:.2f}")
        rows.setdefault("best peer, fused", []).append(f"{GROUPS[group][3]:.2f}")
    for name, cells in rows.items():
        print(f"| {name} | " + " | ".join(cells) + " | |", flush=True)
    for method in given.methods.split(","):
        cells, times = [], []
        for group in groups:
            parents = parents_of(root, group)
            scores, seconds = [], []
            for seed in range(given.seeds):
                samples = training.normalised(balanced(training, given.samples, seed))
                preset = METHODS_TABLE[method]
                seen = preset.needs_data or preset.merge == "precision"
                data = {"calibration": samples} if seen else {"example": samples[:3]}
                start = time.process_time()
                result = fuse(parents, method=method, seed=seed, device="cpu", compare=False, **data)
                seconds.append(time.process_time() - start)
                scores.append(accuracy(result.module, inputs, labels))
            spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
            cells.append(f"{statistics.mean(scores):.2f} ±{spread:.2f}")
            ratio = GROUPS[group][4] / statistics.mean(seconds)
            times.append(f"{statistics.mean(seconds):.2f} ({ratio:.1f}x)")
        print(f"| {method} | " + " | ".join(cells) + " | " + ", ".join(times) + " |", flush=True)


if __name__ == "__main__":
    main()
