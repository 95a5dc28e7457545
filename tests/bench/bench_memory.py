"""Peak memory of fusing with few and with many calibration samples, each in a process of its own.

    uv run python tests/bench/bench_memory.py --data DIR [--few 1000] [--many 60000]

The images lie in a file and are read as they are needed, so what grows with their number is what fxfuse keeps. Prints
peak resident memory of both and their ratio.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from fxfuse.models_zoo.data import mnist
from fxfuse.recipe import DataSpec


def child(root: Path, file: str, count: int) -> None:
    """Fuse two MLPs on the first ``count`` images of a file, and print this process's peak memory in MiB."""
    from bench_mnist import parents_of

    from fxfuse import fuse

    torch.set_num_threads(1)
    data = DataSpec(source=file, limit=count, preprocessing={"mean": (0.1307,), "std": (0.3081,)})
    fuse(parents_of(root, "2: 0+1"), calibration=data, device="cpu", compare=False)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure both in child processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("FXFUSE_DATA"), required="FXFUSE_DATA" not in os.environ)
    parser.add_argument("--few", type=int, default=1000)
    parser.add_argument("--many", type=int, default=60000)
    parser.add_argument("--child", nargs=2, metavar=("FILE", "COUNT"))
    given = parser.parse_args(arguments)
    if given.child:
        child(Path(given.data), given.child[0], int(given.child[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "images.npy"
        np.save(file, mnist(given.data, True).pixels.numpy())
        peaks = []
        for count in (given.few, given.many):
            command = [sys.executable, __file__, "--data", given.data, "--child", str(file), str(count)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            peaks.append(float(done.stdout.splitlines()[-1]))
            print(f"{count} samples: {peaks[-1]:.0f} MiB", flush=True)
        print(f"ratio {peaks[1] / peaks[0]:.3f}")


if __name__ == "__main__":
    main()
