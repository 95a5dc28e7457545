"""A finished run's folder, measured on data and written as ONNX."""

from pathlib import Path

import numpy as np
import pytest
import run_cases
from run_cases import recipe

from fxfuse.errors import DataError, FuseError
from fxfuse.recipe import DataSpec
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


def test_a_result_is_exported(finished: RunOutcome, tmp_path: Path) -> None:
    report = export(finished.folder, tmp_path / "f.onnx")
    assert report.batches == (1, 3, 17)
    assert report.max_rel < 1e-5
    assert (tmp_path / "f.onnx").is_file()
