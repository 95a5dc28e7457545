"""A small workspace for the tests of runs: code, weights and data as a user has them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from fxfuse.recipe import Recipe, resolve
from fxfuse.sources import build

CODE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width=6, classes=3):
        super().__init__()
        self.stem = nn.Linear(4, width)
        self.norm = nn.BatchNorm1d(width)
        self.block = nn.Linear(width, width)
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = x + torch.relu(self.block(x))
        return self.head(x)


class Deeper(Net):
    def __init__(self):
        super().__init__()
        self.extra = nn.Linear(6, 6)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.tanh(self.extra(x))
        x = x + torch.relu(self.block(x))
        return self.head(x)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 6)

    def forward(self, x):
        x = self.first(x)
        rows = [row * 2 if row.sum() > 0 else row for row in x]  # this line stops every front end
        return torch.stack(rows)


class Bessel(Net):
    def forward(self, x):
        return torch.special.bessel_j0(super().forward(x))


class Huge(Net):
    def forward(self, x):
        return super().forward(x * 1e30) * 1e30
"""


def workspace(folder: Path) -> Path:
    """Write ``net.py``, weights ``a`` and ``b``, ``calibration.npz`` and ``test.npz`` into ``folder``."""
    (folder / "net.py").write_text(CODE)
    for seed, name in enumerate("ab"):
        state = trained_looking(folder, "Net", seed)
        save_file(state, folder / f"{name}.safetensors")
    rng = np.random.default_rng(0)
    np.savez(folder / "calibration.npz", inputs=rng.standard_normal((48, 4)).astype(np.float32))
    data(folder / "test.npz", rng.integers(0, 3, 20))
    return folder


def trained_looking(folder: Path, kind: str, seed: int) -> dict[str, torch.Tensor]:
    """A state dict whose norms have statistics."""
    torch.manual_seed(seed)
    module, _ = build(f"{folder / 'net.py'}:{kind}", {}, "case")
    module.train()
    with torch.no_grad():
        for _ in range(3):
            module(torch.randn(32, 4))
    return {key: value.clone() for key, value in module.state_dict().items()}


def data(path: Path, labels: np.ndarray | None = None, count: int = 20) -> Path:
    """A data file with inputs of four features."""
    rng = np.random.default_rng(1)
    inputs = rng.standard_normal((count if labels is None else len(labels), 4)).astype(np.float32)
    np.savez(path, **{"inputs": inputs} | ({} if labels is None else {"labels": labels}))
    return path


def entries(out: str = "out", **changes: Any) -> dict[str, Any]:
    """A quick run's recipe as a mapping."""
    made = {
        "parents": [{"source": "net.py:Net", "weights": f"{name}.safetensors"} for name in "ab"],
        "calibration": "calibration.npz",
        "evaluation": "test.npz",
        "granularity": "layer",
        "fit": {"steps": 4, "joint_steps": 4, "augment": "none"},
        "device": "cpu",
        "output": out,
    }
    return {**made, **changes}


def recipe(folder: Path, out: str = "out", **changes: Any) -> Recipe:
    """The same as a record with absolute paths."""
    return resolve(Recipe(**entries(out, **changes)), folder)
