import io
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import run_cases
import torch
from run_cases import recipe, trained_looking
from safetensors.torch import load_file, save_file

from fxfuse import run as run_module
from fxfuse.errors import DataError, FuseError, MethodError, MismatchError, OutputError, WeightsError
from fxfuse.output import Checkpoint
from fxfuse.progress import LineProgress
from fxfuse.provenance import sha256_of
from fxfuse.recipe import load_recipe
from fxfuse.run import RunOutcome, run

FILES = {"levels.json", "manifest.json", "model.pt2", "model.safetensors", "recipe.yaml", "report.md", "partition.svg"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_cases.workspace(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def finished(place: Path) -> RunOutcome:
    """An uninterrupted run; nobody changes its folder."""
    return run(recipe(place, "whole", onnx=True))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same_bits(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# -------------------------------------------------------------------------------------------- what a run writes


def test_a_run_writes_its_folder_and_nothing_else(place: Path, finished: RunOutcome) -> None:
    assert finished.folder == place / "whole"
    assert {path.name for path in finished.folder.iterdir()} >= {*FILES, "model.onnx"}
    assert not (place / "whole.partial").exists()
    assert finished.onnx is not None
    assert finished.onnx.max_rel < 1e-5


def test_the_weights_are_those_of_the_result_and_load_into_the_class(place: Path, finished: RunOutcome) -> None:
    found = weights(finished.folder)
    for key, value in finished.result.state_dict().items():
        assert torch.equal(found[key], value), key
    module, _ = run_cases.build(f"{place / 'net.py'}:Net", {}, "case")
    module.load_state_dict(found, strict=True)
    x = torch.randn(5, 4)
    torch.testing.assert_close(module.eval()(x), finished.result.module(x), rtol=1e-5, atol=1e-6)


def test_the_manifest_accounts_for_what_went_in(place: Path, finished: RunOutcome) -> None:
    account = json.loads((finished.folder / "manifest.json").read_text())
    for name in ("net.py", "a.safetensors", "b.safetensors", "calibration.npz", "test.npz"):
        assert account["inputs"][str(place / name)] == sha256_of(place / name)
    assert account["outputs"]["model.safetensors"] == sha256_of(finished.folder / "model.safetensors")
    assert account["seed"] == 0
    assert account["environment"]["device"] == "cpu"
    assert account["environment"]["versions"]["torch"]
    assert [level["level"] for level in account["levels"]] == ["stem", "block", "head"]
    assert all(level["after"] <= level["before"] for level in account["levels"])
    assert {"analyse", "fit"} <= account["timings"].keys()
    assert account["onnx"]["path"] == "model.onnx"
    assert [parent["name"] for parent in account["parents"]] == ["a", "b"]


def test_the_recipe_that_is_written_gives_the_same_bits(place: Path, finished: RunOutcome) -> None:
    again = load_recipe(finished.folder / "recipe.yaml")
    assert again.output is None
    outcome = run(again.model_copy(update={"output": str(place / "again"), "onnx": False}))
    assert same_bits(outcome.folder, finished.folder)
    levels = [json.loads((folder / "levels.json").read_text()) for folder in (outcome.folder, finished.folder)]
    for row in (row for part in levels for row in part["levels"]):
        row.pop("seconds")
    assert levels[0] == levels[1]


def test_another_seed_gives_other_bits(place: Path, finished: RunOutcome) -> None:
    assert not same_bits(run(recipe(place, "seeded", seed=1)).folder, finished.folder)


def test_a_method_without_data_needs_none(place: Path) -> None:
    settings = {"calibration": None, "evaluation": None, "method": "average", "fit": {}}
    said = io.StringIO()
    outcome = run(recipe(place, "averaged", **settings), progress=LineProgress(said))
    assert "no data given: the parents are traced with the guessed input 2,4" in said.getvalue()
    mean = {key: (a + b) / 2 for (key, a), b in zip(*_parents(place), strict=True)}
    for key, value in weights(outcome.folder).items():
        if value.is_floating_point() and "running" not in key:
            torch.testing.assert_close(value, mean[key], rtol=1e-6, atol=1e-6)


def _parents(place: Path):  # type: ignore[no-untyped-def]
    a, b = (load_file(place / f"{name}.safetensors") for name in "ab")
    return a.items(), [b[key] for key in a]


# ----------------------------------------------------------------------------------------- interrupted and resumed


@pytest.mark.parametrize("saved", [1, 2])
def test_after_ctrl_c_resume_gives_the_bits_of_a_run_in_one_go(
    saved: int, place: Path, finished: RunOutcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"stopped{saved}"
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", _stopping(saved))
        with pytest.raises(KeyboardInterrupt):
            run(recipe(place, name))
    assert not (place / name).exists()
    assert len(Checkpoint(place / f"{name}.partial" / "state")) == saved
    with pytest.raises(OutputError, match="say --resume to go on with it, or --overwrite"):
        run(recipe(place, name))
    with pytest.raises(OutputError, match="`seed` was 0 and is 1"):
        run(recipe(place, name, seed=1), resume=True)
    done: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", _counting(done))
        outcome = run(recipe(place, name), resume=True)
    assert same_bits(outcome.folder, finished.folder)
    assert not (place / f"{name}.partial").exists()
    everything: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", _counting(everything))
        run(recipe(place, name), overwrite=True)
    assert len(done) < len(everything)  # finished levels were not fitted again


def _stopping(after: int):  # type: ignore[no-untyped-def]
    save, calls = Checkpoint.save, []

    def stop(self: Checkpoint, *args: object, **kwargs: object) -> None:
        save(self, *args, **kwargs)  # type: ignore[arg-type]
        calls.append(1)
        if len(calls) == after:
            raise KeyboardInterrupt

    return stop


def _counting(keys: list[str]):  # type: ignore[no-untyped-def]
    save = Checkpoint.save

    def count(self: Checkpoint, key: str, *args: object, **kwargs: object) -> None:
        keys.append(key)
        save(self, key, *args, **kwargs)  # type: ignore[arg-type]

    return count


def test_after_kill_9_resume_gives_the_bits_of_a_run_in_one_go(place: Path, finished: RunOutcome) -> None:
    script = textwrap.dedent(
        f"""
        import os, signal, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        import run_cases
        from fxfuse.output import Checkpoint
        from fxfuse.run import run
        save = Checkpoint.save
        def die(self, *args, **kwargs):
            save(self, *args, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)
        Checkpoint.save = die
        run(run_cases.recipe(Path({str(place)!r}), "killed"))
        """
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert not (place / "killed").exists()
    outcome = run(recipe(place, "killed"), resume=True)
    assert same_bits(outcome.folder, finished.folder)
    assert not (place / "killed.partial").exists()


# ------------------------------------------------------------------------------------------------- bad input


def refused(place: Path, kind: type[FuseError], **changes: object) -> str:
    """The message of a run that must fail, and must leave nothing."""
    before = sorted(os.listdir(place))
    with pytest.raises(kind) as caught:
        run(recipe(place, "bad", **changes))
    assert sorted(os.listdir(place)) == before
    return str(caught.value)


def parent(source: str, file: str | None = None, **entries: object) -> dict[str, object]:
    return {"source": source, "weights": file, **entries}


GOOD = parent("net.py:Net", "a.safetensors")


def test_parents_whose_graphs_differ(place: Path) -> None:
    text = refused(place, MismatchError, parents=[GOOD, parent("net.py:Deeper", name="deep")])
    assert "deep has tanh at tanh (level extra)" in text
    assert "a has relu at relu_1 (level block)" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("head.bias"), r"b2.*1 of 11 keys missing \(head.bias 3\)"),
        (lambda s: s.update(more=torch.ones(2)), r"b2.*1 unexpected \(more 2\)"),
        (lambda s: s.update({"head.bias": torch.ones(4)}), r"b2.*misshapen \(head.bias 4 where the model has 3\)"),
        (lambda s: s["stem.weight"].fill_(float("nan")), r"b2.*'stem.weight' has 24 NaN"),
        (lambda s: s["stem.weight"][0].fill_(float("inf")), r"b2.*'stem.weight' has 4 infinite"),
    ],
)
def test_weights_that_cannot_be_used(place: Path, tmp_path: Path, change: object, message: str) -> None:
    state = trained_looking(place, "Net", 1)
    change(state)  # type: ignore[operator]
    save_file(state, tmp_path / "b2.safetensors")
    with pytest.raises(WeightsError, match=message):
        run(recipe(place, "bad", parents=[GOOD, parent("net.py:Net", str(tmp_path / "b2.safetensors"))]))
    assert not (place / "bad").exists()


def test_a_checkpoint_that_needs_code(place: Path, tmp_path: Path) -> None:
    module, _ = run_cases.build(f"{place / 'net.py'}:Net", {}, "case")
    torch.save(module, tmp_path / "whole.pt")
    with pytest.raises(WeightsError, match=r"whole\.pt needs code to be executed"):
        run(recipe(place, "bad", parents=[GOOD, parent("net.py:Net", str(tmp_path / "whole.pt"))]))
    assert not (place / "bad").exists()


def test_infinite_activations(place: Path) -> None:
    text = refused(place, DataError, parents=[GOOD, parent("net.py:Huge", "b.safetensors", name="huge")])
    assert text.startswith("parent 'huge' answers calibration.npz with NaN or infinite values")


def test_inputs_that_the_model_rejects(place: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "wide.npz", inputs=np.ones((8, 5), np.float32))
    text = refused(place, DataError, calibration=str(tmp_path / "wide.npz"))
    assert text.startswith("parent 'a' rejects inputs of shape (2, 5): ")


@pytest.mark.parametrize(("count", "words"), [(0, "is empty"), (1, "has one sample")])
def test_too_few_samples(place: Path, tmp_path: Path, count: int, words: str) -> None:
    path = run_cases.data(tmp_path / "few.npz", count=count)
    text = refused(place, DataError, calibration=str(path))
    assert "few.npz" in text
    assert words in text


@pytest.mark.parametrize("key", ["calibration", "evaluation"])
def test_labels_out_of_range(place: Path, tmp_path: Path, key: str) -> None:
    path = run_cases.data(tmp_path / "labelled.npz", np.array([0, 1, 2, 1, 3, 0]))
    text = refused(place, DataError, **{key: str(path)})
    assert f"{key} data (labelled.npz): labels must lie in 0..2" in text
    assert "Got 3 at sample 4." in text


def test_a_label_map_of_another_length_is_told_as_such(place: Path) -> None:
    parents = [parent("net.py:Net", f"{name}.safetensors", labels=["cat", "dog"]) for name in "ab"]
    text = refused(place, MethodError, parents=parents)
    assert text.startswith("the label map of a has 2 entries, but the network has 3 outputs; name their classes")


def test_a_program_beside_a_module_is_told_what_to_do(place: Path, tmp_path: Path) -> None:
    net = run_cases.build(f"{place / 'net.py'}:Net", {}, "net")[0].eval()
    batch = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(net, (torch.ones(2, 4),), dynamic_shapes=batch), tmp_path / "p.pt2")
    program = str(tmp_path / "p.pt2")
    text = refused(place, MismatchError, parents=[parent(program), GOOD])
    assert "the graphs of p and a differ" in text
    assert text.endswith("give it as the weights of the module's source, net.py:Net=p.pt2")
    done = run(recipe(place, "mixed", method="average", parents=[parent("net.py:Net", program), GOOD]))
    assert "p: took the weights of the program p.pt2" in done.result.notes


def test_a_late_label_is_found_before_the_work(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxfuse.loading.CHECKED", 2)
    monkeypatch.setattr(run_module, "fuse", lambda *_, **__: pytest.fail("the work began"))
    path = run_cases.data(tmp_path / "late.npz", np.array([0, 1, 2, 1, 0, 9]))
    assert "Got 9 at sample 5." in refused(place, DataError, evaluation=str(path))


def test_nan_in_the_data(place: Path, tmp_path: Path) -> None:
    values = np.ones((8, 4), np.float32)
    values[6, 1] = np.nan
    np.savez(tmp_path / "gap.npz", inputs=values)
    assert "gap.npz): sample 6 has NaN values" in refused(place, DataError, calibration=str(tmp_path / "gap.npz"))


def test_labels_wanted_and_missing(place: Path) -> None:
    assert "has none: give labels" in refused(place, DataError, head="labels")


def test_no_data_for_a_method_that_needs_some(place: Path) -> None:
    text = refused(place, FuseError, calibration=None)
    assert text.startswith("The method 'hungarian-gradient' needs calibration data")


def test_unknown_names_suggest_the_nearest(place: Path) -> None:
    assert "did you mean 'kmeans-linear'?" in refused(place, FuseError, method="kmeens-linear")
    assert "did you mean 'conductance'?" in refused(place, FuseError, importance="conductence")
    assert "did you mean 'relu'?" in refused(place, FuseError, granularity=["relv"])


def test_a_network_that_cannot_be_traced(place: Path) -> None:
    text = refused(place, FuseError, parents=[parent("net.py:Branching", name="odd")], evaluation=None)
    assert text.startswith("odd cannot be turned into a graph")
    line = next(n for n, code in enumerate(run_cases.CODE.splitlines(), 1) if "this line stops" in code)
    assert f"net.py:{line}" in text


def test_an_operator_without_onnx_form_is_found_before_the_work(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "fuse", lambda *_, **__: pytest.fail("the work began"))
    parents = [parent("net.py:Bessel", f"{name}.safetensors") for name in "ab"]
    assert "bessel_j0" in refused(place, FuseError, parents=parents, onnx=True)


def test_an_existing_output_is_found_before_anything_is_loaded(place: Path, finished: RunOutcome) -> None:
    with pytest.raises(OutputError, match=f"{finished.folder} is not empty; choose another, or say --overwrite"):
        run(recipe(place, "whole", parents=["missing.py:factory"]))


def test_an_output_that_cannot_be_written(place: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        run(recipe(place, "net.py/out"))
