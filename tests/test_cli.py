import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import run_cases
import yaml

from fxfuse.cli import main
from fxfuse.output import Checkpoint
from fxfuse.presets import METHODS

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = run_cases.workspace(tmp_path_factory.mktemp("cli"))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(run_cases.entries("fused")))
    (folder / "wrong.yaml").write_text(yaml.safe_dump(run_cases.entries("fused", parents=["net.py:Nett"])))
    return folder


@pytest.fixture(autouse=True)
def _in_place(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "160")


def fails(capsys: Captured, *argv: str, status: int = 2) -> str:
    """The one line on standard error of a command that must fail and leave no new folder."""
    before = sorted(os.listdir())
    assert main(argv) == status
    out, err = capsys.readouterr()
    assert out == ""
    last = err.rstrip("\n").split("\n")[-1]
    assert last.startswith("error: ")
    assert "Traceback" not in err
    assert sorted(os.listdir()) == before
    return last


# ------------------------------------------------------------------------------------------------- the commands


def test_help_is_there_without_loading_torch() -> None:
    code = "import sys; from fxfuse.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for command in ("demo", "inspect", "fuse", "export", "eval", "methods"):
        assert command in done.stdout


@pytest.mark.parametrize("command", ["demo", "inspect", "fuse", "export", "eval", "methods"])
def test_every_command_explains_itself(command: str, capsys: Captured) -> None:
    assert main([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"fxfuse {command}" in out
    assert "Example" in out or command == "methods"


def test_alone_it_shows_its_help(capsys: Captured) -> None:
    assert main([]) == 0
    assert "Usage: fxfuse" in capsys.readouterr().out


def test_version(capsys: Captured) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("fxfuse ")


def test_methods_are_those_of_the_table(capsys: Captured) -> None:
    assert main(["methods"]) == 0
    table = capsys.readouterr().out
    assert main(["methods", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["method"] for row in rows] == list(METHODS)
    assert all(name in table for name in METHODS)
    assert all(row["summary"] for row in rows)


def test_inspect_prints_the_levels_and_writes_them(capsys: Captured, tmp_path: Path) -> None:
    files = [tmp_path / f"net{suffix}" for suffix in (".json", ".graphml", ".dot", ".svg", ".mmd")]
    out = [word for path in files for word in ("--out", str(path))]
    argv = ["inspect", "net.py:Net", "--weights", "a.safetensors", "--input", "2,4", "--granularity", "layer", *out]
    assert main(argv) == 0
    printed, err = capsys.readouterr()
    assert all(path.stat().st_size for path in files)
    for word in ("stem", "block", "head", "BatchNorm1d", "N×6", "stem.weight:0 (6)", "neuron axis", "parameters"):
        assert word in printed
    assert err == ""


def test_inspect_as_json_says_what_it_guessed(capsys: Captured) -> None:
    assert main(["inspect", "net.py:Net", "--json", "--granularity", "2"]) == 0
    out, err = capsys.readouterr()
    assert len(json.loads(out)["levels"]) == 2
    assert err == "note: no --input given; guessed --input 2,4, which the network takes\n"


def test_fuse_by_recipe_then_eval_and_export(capsys: Captured, tmp_path: Path) -> None:
    assert main(["fuse", "recipe.yaml"]) == 0
    out, err = capsys.readouterr()
    for word in ("ensemble (probabilities)", "ensemble (logits)", "average", "fused", "stem", "model.safetensors"):
        assert word in out
    assert "fit levels" in err
    assert main(["eval", "fused", "--data", "test.npz", "--json"]) == 0
    score = json.loads(capsys.readouterr().out)
    assert 0 <= score["accuracy"] <= 1
    assert main(["eval", "fused"]) == 0
    assert f"{100 * score['accuracy']:.2f}" in capsys.readouterr().out
    onnx = tmp_path / "f.onnx"
    assert main(["export", "fused", "--onnx", str(onnx)]) == 0
    assert "at batch 1, 3, 17 differs by at most" in capsys.readouterr().out
    assert onnx.is_file()
    assert "is not empty" in fails(capsys, "fuse", "recipe.yaml")


def test_fuse_by_options_as_json(capsys: Captured, tmp_path: Path) -> None:
    out = tmp_path / "wide"
    argv = ["fuse", "-p", "net.py:Net", "-w", "a.safetensors", "-w", "b.safetensors", "--target", "1.5"]
    argv += ["--calibration", "{source: calibration.npz, limit: 32}", "--method", "kmeans-linear", "--share", "3"]
    argv += ["--share", "1", "--device", "cpu", "--steps", "2", "--augment", "none", "--out", str(out), "--json"]
    argv[argv.index("-p") : argv.index("--target")] = [
        "-p",
        "net.py:Net()=a.safetensors",
        "-p",
        "net.py:Net=b.safetensors",
    ]
    assert main(argv) == 0
    printed, err = capsys.readouterr()
    summary = json.loads(printed)
    assert summary["folder"] == str(out)
    assert {level["width"] for level in summary["levels"]} == {9, None}
    events = [json.loads(line)["event"] for line in err.splitlines()]
    assert {"start", "finish", "note"} <= set(events)
    written = yaml.safe_load((out / "recipe.yaml").read_text())
    assert [parent["share"] for parent in written["parents"] if "share" in parent] == [3.0]
    assert written["calibration"]["limit"] == {"count": 32}
    assert written["target"] == {"width": 1.5}


def test_a_base_model_and_options_by_options(capsys: Captured, tmp_path: Path) -> None:
    argv = ["fuse", "-p", "net.py:Net", "-w", "a.safetensors", "-w", "b.safetensors", "--evaluation", "calibration.npz"]
    out = tmp_path / "tied"
    argv += ["--method", "ties", "--option", "density=0.5", "--option", "scale=2", "--device", "cpu"]
    assert main([*argv, "--out", str(tmp_path / "none")]) == 2
    assert "give that model" in capsys.readouterr().err
    assert main([*argv, "--base", "net.py:Net=a.safetensors", "--out", str(out), "--quiet"]) == 0
    written = yaml.safe_load((out / "recipe.yaml").read_text())
    assert written["options"] == {"density": 0.5, "scale": 2}
    assert written["base"]["weights"].endswith("a.safetensors")
    assert main(["fuse", "recipe.yaml", "--option", "density", "--out", str(tmp_path / "bad")]) == 2
    assert "KEY=VALUE" in capsys.readouterr().err
    matched = ["fuse", "recipe.yaml", "--method", "rebasin", "--statistics", "weights", "--quiet"]
    assert main([*matched, "--out", str(tmp_path / "matched"), "--device", "cpu"]) == 0


def test_quiet_says_nothing(capsys: Captured, tmp_path: Path) -> None:
    argv = ["fuse", "recipe.yaml", "--method", "average", "--out", str(tmp_path / "quiet"), "--quiet"]
    assert main(argv) == 0
    assert capsys.readouterr() == ("", "")


# ------------------------------------------------------------------------------------------------- interruption


def test_ctrl_c_says_how_to_go_on(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    save = Checkpoint.save

    def stop(self: Checkpoint, *args: object, **kwargs: object) -> None:
        save(self, *args, **kwargs)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", stop)
        assert main(["fuse", "recipe.yaml", "--out", "halted", "--quiet"]) == 130
    err = capsys.readouterr().err
    command = "fxfuse fuse recipe.yaml --out halted --quiet --resume"
    assert err == f"interrupted; go on from the last finished level with: {command}\n"
    assert not Path("halted").exists()
    assert main(command.split()[1:]) == 0
    assert Path("halted").is_dir()


def test_ctrl_c_before_anything_is_kept(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fxfuse.run.fuse", stop)
    assert main(["fuse", "recipe.yaml", "--out", "early", "-q"]) == 130
    assert capsys.readouterr().err == "interrupted; nothing was kept\n"
    assert not Path("early").exists()
    assert not Path("early.partial").exists()


# ------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["fuse", "recipe.yaml", "--method", "kmaens"], "unknown method 'kmaens': did you mean 'kmeans'?"),
        (["fuse", "recipe.yaml", "--device", "cuda:99"], "cuda:99"),
        (["fuse", "recipe.yaml", "--device", "gpu"], "`device` must be 'auto', 'cpu', 'cuda' or 'cuda:<index>'"),
        (["fuse", "recipe.yaml", "--calibration", "calibraton.npz"], "did you mean 'calibration.npz'?"),
        (["fuse", "recipe.yaml", "--calibration", "{source: a.npz, limt: 3}"], "`calibration.limt` is not a known key"),
        (["fuse", "recipe.yaml", "--out", "net.py/out"], "cannot be written"),
        (["fuse", "recipe.yaml", "--out", "net.py"], "is a file; name a folder"),
        (["fuse", "recipe.yaml", "--steps", "-1"], "`fit.steps` must be at least 0"),
        (["fuse", "missing.yaml"], "There is no recipe at missing.yaml"),
        (["fuse"], "There is nothing to fuse"),
        (["fuse", "-p", "net.py:Net", "-w", "a.safetensors"], "needs calibration data"),
        (["fuse", "-p", "net.py:Nett", "--calibration", "calibration.npz"], "did you mean 'Net'?"),
        (["fuse", "-p", "net.py:Net", "-p", "net.py:Net", "-w", "a.safetensors"], "one --weights per --parent"),
        (["fuse", "-w", "a.safetensors"], "belong to --parent"),
        (["fuse", "recipe.yaml", "--mehtod", "x"], "No such option: --mehtod"),
        (["fuze"], "No such command 'fuze'"),
        (["inspect"], "Missing argument"),
        (["inspect", "resnet18"], "did you mean 'torchvision:resnet18'?"),
        (["inspect", "net.py:Net", "--input", "2,5"], "rejects inputs of shape (2, 5)"),
        (["inspect", "net.py:Net", "--input", "two"], "`--input` must be sizes"),
        (["inspect", "net.py:Net", "--input", "2,4", "--granularity", "stam"], "did you mean 'stem'?"),
        (["inspect", "net.py:Net", "--input", "2,4", "--out", "net.pdfx"], "its suffix must be one of"),
        (["inspect", "net.py:Branching", "--input", "2,4"], "this line stops every front end"),
        (["fuse", "recipe.yaml", "--target", "1e9"], "does not fit into memory"),
        (["fuse", "recipe.yaml", "--leaf", "sten"], "of the path or class 'sten' to keep whole; did you mean 'stem'"),
        (["fuse", "recipe.yaml", "--submodule", "sten"], "did you mean 'stem'? Known: block, head, norm, stem"),
        (["fuse", "recipe.yaml", "--calibration", "{source: [}"], "Data must be a source or a mapping in YAML"),
        (["inspect", "net.py:Net", "--out", "nowhere/net.svg"], "there is no folder nowhere"),
        (["compare", "recipe.yaml", "--out", "net.py"], "cannot be used: File exists"),
        (["compare", "wrong.yaml", "--out", "bad"], "did you mean 'Net'?"),
        (["coverage", "--only", "alexnet", "--out", "net.py"], "net.py/rows cannot be made: Not a directory"),
        (["coverage", "--seconds", "-1", "--out", "bad"], "Invalid value for '--seconds'"),
        (["demo", "--seed", "-1", "--out", "bad"], "Invalid value for '--seed'"),
        (["eval", "."], "is not a result of fxfuse"),
        (["export", ".", "--onnx", "nowhere/x.onnx"], "there is no folder nowhere"),
        (["export", ".", "--onnx", "."], "it is a folder; name a file"),
        (["export", ".", "--onnx", "x.onnx"], "is not a result of fxfuse"),
    ],
)
def test_bad_input_is_one_line_and_status_2(argv: list[str], message: str, capsys: Captured) -> None:
    if argv[0] == "fuse" and "--out" not in argv:
        argv = [*argv, "--out", "bad"]
    assert message in fails(capsys, *argv)


def test_a_mistake_in_a_recipe_names_its_key(capsys: Captured, tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("parents: [net.py:Net]\nfit: {stpes: 3}\n")
    assert "`fit.stpes` is not a known key: did you mean 'steps'?" in fails(capsys, "fuse", str(file))


def test_an_output_folder_must_be_named(capsys: Captured, tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("parents: [net.py:Net]\n")
    assert "There is no output folder: name one by --out" in fails(capsys, "fuse", str(file))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ZeroDivisionError("by nought"), "ZeroDivisionError at .*test_cli.py:[0-9]+: by nought. This was not foreseen"),
        (MemoryError(), "^error: memory ran out: give fewer or smaller samples"),
        (RuntimeError("DefaultCPUAllocator: can't allocate"), "^error: memory ran out"),
    ],
)
def test_what_nobody_foresaw_is_one_line_too(
    error: Exception, words: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("fxfuse.inspection.inspect", breaks)
    assert re.search(words, fails(capsys, "inspect", "net.py:Net"))
    with pytest.raises(type(error)):
        main(["inspect", "net.py:Net", "--debug"])


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(Exception, match="There is no recipe"):
        main(["fuse", "missing.yaml", "--debug"])
