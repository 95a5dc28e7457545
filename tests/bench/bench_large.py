"""Peak memory and CPU time of fusing two large networks of torchvision, random weights and all.

    uv run python tests/bench/bench_large.py [--network vit_b_32] [--method hungarian-gradient] [--copy]

Each of the few images and steps is enough for every stage to hold what it holds in earnest; with more of them only the
time grows. Prints what the process takes before the fusion, with both parents in it, and at its peak, also as multiples
of one network's parameters, and the seconds of each stage. ``--copy`` fuses as a caller in Python does who keeps the
parents; without, as the command line does.
"""

import argparse
import resource
import time
from collections.abc import Sequence

import torch
import torchvision

from fxfuse import FitSettings, fuse
from fxfuse.models_zoo import randomise


def main(arguments: Sequence[str] | None = None) -> None:
    """Fuse and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="vit_b_32")
    parser.add_argument("--method", default="hungarian-gradient")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--copy", action="store_true")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    parents = [randomise(torchvision.models.get_model(given.network, weights=None), seed).eval() for seed in range(2)]
    size = sum(p.numel() * p.element_size() for p in parents[0].parameters())
    images = torch.randn(given.images, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    fit = FitSettings(steps=2, joint_steps=2, batch_size=2, augment="none", start="fused")
    print(f"one network: {size / 2**20:.0f} MiB")
    _print("before", size)
    start = time.process_time()
    result = fuse(
        parents, calibration=images, method=given.method, fit=fit, compare=False, device="cpu", copy=given.copy
    )
    _print("peak", size)
    stages = ", ".join(f"{name} {seconds:.0f}" for name, seconds in result.timings.items())
    print(f"CPU {time.process_time() - start:.0f} s; wall by stage: {stages}")


def _print(what: str, size: int) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{what}: {peak / 2**20:.0f} MiB, {peak / size:.1f} times one network", flush=True)


if __name__ == "__main__":
    main()
