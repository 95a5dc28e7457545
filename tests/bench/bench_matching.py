"""CPU seconds and memory of matching OTFusion's two networks by their weights, tracing apart.

    python tests/bench/bench_matching.py --data DIR

The grouping alone, best of five, and how far it raises the process's peak memory.
"""

import argparse
import os
import resource
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from fxfuse import METHODS, analyse, correspond
from fxfuse.models_zoo.mlp import load_otfusion
from fxfuse.passes.weight_matching import match_weights


def peak() -> float:
    """Peak memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one row per method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("FXFUSE_DATA"), required="FXFUSE_DATA" not in os.environ)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    folder = Path(given.data) / "parents" / "otfusion"
    parents = [load_otfusion(folder / f"mnist_mlp_{i}.safetensors").eval() for i in (0, 1)]
    analyses = [analyse(parent, torch.randn(3, 784)) for parent in parents]
    pairs = correspond(analyses[0], analyses)
    torch.randn(64, 64) @ torch.randn(64, 64)
    for name in ("ot-weights", "transplant", "rebasin-weights"):
        preset, before, seconds = METHODS[name], peak(), []
        for _ in range(5):
            start = time.process_time()
            match_weights(
                pairs, (0.5, 0.5), preset.solver, preset.options, search=preset.search, importance=preset.importance
            )
            seconds.append(time.process_time() - start)
        print(f"{name}: {min(seconds):.3f} CPU s, peak +{peak() - before:.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
