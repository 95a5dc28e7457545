import contextlib
import io
from pathlib import Path

import pytest
import torch

from fxfuse import demo as demo_module
from fxfuse.cli import main
from fxfuse.demo import demo
from fxfuse.errors import OutputError
from fxfuse.models_zoo.train import Settings


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A demo with shorter training and fitting, through the command line, and what it printed."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "120")
        patch.setattr(demo_module, "SETTINGS", Settings(epochs=6, batch=32, rate=0.1, shift=0, flip=False))
        shorter = demo_module.RECIPE + "fit: {{steps: 20, joint_steps: 20}}\n"
        patch.setattr(demo_module, "RECIPE", shorter)
        printed = io.StringIO()
        threads = torch.get_num_threads()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
            assert main(["demo", "--out", str(folder)]) == 0
        assert torch.get_num_threads() == threads
    return folder, printed.getvalue()


def test_one_table_compares_everything(shown: tuple[Path, str]) -> None:
    text = shown[1]
    rows = [line.split("│")[1:-1] for line in text.splitlines() if line.startswith("│")]
    names = [row[0].strip() for row in rows]
    parents = ["digits-0-to-3", "digits-4-to-6", "digits-7-to-9"]
    assert names == [*parents, "ensemble (probabilities)", "ensemble (logits)", "average", "fused"]
    accuracy = {name: float(row[1]) for name, row in zip(names, rows, strict=True)}
    assert max(accuracy[name] for name in parents) < accuracy["ensemble (probabilities)"]
    assert accuracy["average"] < accuracy["fused"]


def test_it_says_what_happened_and_what_to_do_next(shown: tuple[Path, str]) -> None:
    folder, text = shown
    assert "16 + 16 + 16 neurons grouped into 16" in text
    assert "model.onnx in onnxruntime differs from the fused network by at most" in text
    assert f"fxfuse fuse {folder / 'recipe.yaml'}" in text
    for name in ("model.safetensors", "model.onnx", "report.md", "recipe.yaml"):
        assert (folder / "fused" / name).is_file()


def test_the_command_that_it_names_works(shown: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    folder, text = shown
    line = next(line for line in text.splitlines() if "hungarian-linear" in line)
    assert main([*line.split()[1:], "--no-onnx", "--quiet"]) == 0, capsys.readouterr().err
    assert (folder / "again" / "model.safetensors").is_file()


def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(OutputError, match="is in use and is no earlier demo"):
        demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
