"""A finished run's folder, measured on data and written as ONNX."""

from pathlib import Path

import numpy as np
import pytest
import run_cases
from run_cases import recipe

from fxfuse.errors import DataError, FuseError
from fxfuse.recipe import DataSpec, ParentSpec, Recipe
from fxfuse.results import evaluate, export
from fxfuse.run import RunOutcome, run


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_cases.workspace(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def finished(place: Path) -> RunOutcome:
    return run(recipe(place, "whole", method="average"))


def test_a_result_is_evaluated_as_the_run_did(place: Path, finished: RunOutcome) -> None:
    (expected,) = (row for row in finished.result.scores if row.name == "fused")
    own, _ = evaluate(finished.folder)
    other, description = evaluate(finished.folder, str(place / "test.npz"))
    spec, _ = evaluate(finished.folder, DataSpec(source=str(place / "test.npz")))
    assert own.accuracy == other.accuracy == spec.accuracy == expected.accuracy
    assert own.loss == pytest.approx(expected.loss, rel=1e-5)
    assert own.parameters == expected.parameters
    assert description == "test.npz"


def test_evaluation_says_what_does_not_fit(finished: RunOutcome, tmp_path: Path) -> None:
    np.savez(tmp_path / "wide.npz", inputs=np.ones((8, 5), np.float32))
    with pytest.raises(DataError, match=r"takes samples of shape 4; wide.npz has 5"):
        evaluate(finished.folder, str(tmp_path / "wide.npz"))
    with pytest.raises(FuseError, match="is not a result of fxfuse"):
        evaluate(tmp_path)


def spoilt(path: Path, **arrays: np.ndarray) -> str:
    np.savez(path, **{"inputs": np.ones((8, 4), np.float32), "labels": np.zeros(8, int), **arrays})
    return str(path)


def test_nothing_is_measured_on_what_cannot_be(finished: RunOutcome, tmp_path: Path) -> None:
    bare = str(run_cases.data(tmp_path / "bare.npz"))
    with pytest.raises(DataError, match=r"bare\.npz has no labels, so there is nothing to measure"):
        evaluate(finished.folder, bare)
    with pytest.raises(DataError, match=r"gap\.npz has NaN or infinite values"):
        evaluate(finished.folder, spoilt(tmp_path / "gap.npz", inputs=np.full((8, 4), np.nan, np.float32)))
    with pytest.raises(DataError, match=r"lie in 0\.\.2, .* Got 9"):
        evaluate(finished.folder, spoilt(tmp_path / "nine.npz", labels=np.full(8, 9)))


def test_named_classes_are_found_by_their_names(place: Path) -> None:
    """The data's order of the classes is not the network's."""
    (place / "named.py").write_text(
        "import torch\n"
        "class Named(torch.utils.data.Dataset):\n"
        "    def __init__(self, classes):\n"
        "        self.classes = classes\n"
        "    def __len__(self):\n"
        "        return 12\n"
        "    def __getitem__(self, i):\n"
        "        x = torch.randn(4, generator=torch.Generator().manual_seed(i))\n"
        "        return x, self.classes.index('abc'[i % 3])\n"
    )
    parents = [{"source": "net.py:Net", "weights": f"{name}.safetensors", "labels": ["a", "b", "c"]} for name in "ab"]
    outcome = run(recipe(place, "classes", method="average", parents=parents, evaluation=None))
    found = [
        evaluate(outcome.folder, DataSpec(source=f"{place / 'named.py'}:Named(classes={order})"))[0].accuracy
        for order in (["a", "b", "c"], ["c", "a", "b"])
    ]
    assert found[0] == found[1]
    assert 0 < found[0] < 1


READER = """
import torch
from torch import nn


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.inner, self.head = nn.Embedding(9, 6), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, tokens, scale):
        return self.head(self.inner(self.embed(tokens) * scale[:, None, None]).relu().mean(1))
"""


def test_a_network_that_is_called_by_names_is_measured_by_them(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(READER)
    tokens = np.arange(40).reshape(8, 5) % 9
    scale, labels = np.ones((8, 1), np.float32)[:, 0], np.arange(8) % 3
    np.savez(tmp_path / "data.npz", scale=scale, tokens=tokens, labels=labels)
    np.savez(tmp_path / "floats.npz", scale=scale, tokens=tokens.astype(np.float32), labels=labels)
    np.savez(tmp_path / "large.npz", scale=scale, tokens=tokens + 9, labels=labels)
    spec = DataSpec(source=str(tmp_path / "data.npz"), inputs=("tokens", "scale"))
    parent = ParentSpec(source=f"{tmp_path / 'net.py'}:Reader")
    made = run(Recipe(parents=(parent,), method="average", calibration=spec, output=str(tmp_path / "out")))
    (expected,) = (row for row in made.result.scores if row.name == "fused")
    figures, _ = evaluate(made.folder, str(tmp_path / "data.npz"))
    assert figures.accuracy == expected.accuracy
    with pytest.raises(DataError, match=r"floats.npz, which holds float32 and float32: .*; it takes int64 and float32"):
        evaluate(made.folder, str(tmp_path / "floats.npz"))
    with pytest.raises(DataError, match=r"large.npz, which holds int64 and float32: .*; look at their values"):
        evaluate(made.folder, str(tmp_path / "large.npz"))


def test_a_result_is_exported(finished: RunOutcome, tmp_path: Path) -> None:
    report = export(finished.folder, tmp_path / "f.onnx")
    assert report.batches == (1, 3, 17)
    assert report.max_rel < 1e-5
    assert (tmp_path / "f.onnx").is_file()
