import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from fxfuse.errors import OutputError
from fxfuse.output import Checkpoint, OutputFolder, difference, write_atomically

ONE, TWO = {"fit": {"steps": 100}, "seed": 1}, {"fit": {"steps": 150}, "seed": 1}


def finish(path: Path, identity: dict[str, object] = ONE, **options: bool) -> None:
    with OutputFolder(path, identity, **options) as output:
        (output.folder / "manifest.json").write_text(json.dumps(identity))


def interrupt(path: Path, identity: dict[str, object] = ONE, **options: bool) -> None:
    """A run that saves one part and is then interrupted."""
    output = OutputFolder(path, identity, **options)
    output.__enter__()
    output.checkpoint.save("level 0", {"w": torch.ones(2)}, {"error": 0.5})
    output.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)


def refused(path: Path, identity: dict[str, object] = ONE, **options: bool) -> str:
    with pytest.raises(OutputError) as caught:
        OutputFolder(path, identity, **options).__enter__()
    return str(caught.value)


def test_a_result_appears_at_the_end_and_nothing_else_stays(tmp_path: Path) -> None:
    path = tmp_path / "new" / "out"
    with OutputFolder(path, ONE) as output:
        (output.folder / "sub").mkdir()
        (output.folder / "sub" / "a.txt").write_text("a")
        assert not path.exists()
    assert (path / "sub" / "a.txt").read_text() == "a"
    assert os.listdir(path.parent) == ["out"]


def test_an_early_error_leaves_nothing_not_even_parents(tmp_path: Path) -> None:
    output = OutputFolder(tmp_path / "new" / "out", ONE)
    output.__enter__()
    output.__exit__(ValueError, ValueError(), None)
    assert os.listdir(tmp_path) == []


def test_an_interrupted_run_resumes_at_what_it_saved(tmp_path: Path) -> None:
    path = tmp_path / "out"
    interrupt(path)
    assert os.listdir(tmp_path) == ["out.partial"]
    with OutputFolder(path, ONE, resume=True) as output:
        found = output.checkpoint.load("level 0")
        assert found is not None
        assert torch.equal(found[0]["w"], torch.ones(2))
        assert found[1] == {"error": 0.5}
        assert output.checkpoint.load("level 1") is None
        assert ("level 0" in output.checkpoint, "level 1" in output.checkpoint) == (True, False)
    assert os.listdir(tmp_path) == ["out"]


def test_an_interrupted_run_is_never_lost_silently(tmp_path: Path) -> None:
    path = tmp_path / "out"
    interrupt(path)
    assert "say --resume to go on with it, or --overwrite to start over" in refused(path)
    message = refused(path, TWO, resume=True)
    assert "had another recipe (`fit.steps` was 100 and is 150)" in message
    assert "--overwrite" in message
    assert len(OutputFolder(path, ONE).checkpoint) == 1
    with OutputFolder(path, TWO, overwrite=True) as output:
        assert len(output.checkpoint) == 0


def test_resume_starts_afresh_where_there_is_nothing(tmp_path: Path) -> None:
    finish(tmp_path / "out", resume=True)
    assert (tmp_path / "out" / "manifest.json").exists()


def test_an_earlier_result_is_kept_until_the_new_one_is_there(tmp_path: Path) -> None:
    path = tmp_path / "out"
    finish(path, ONE)
    assert "is not empty; choose another, or say --overwrite" in refused(path)
    interrupt(path, TWO, overwrite=True)
    assert json.loads((path / "manifest.json").read_text()) == ONE
    finish(path, TWO, overwrite=True, resume=True)
    assert json.loads((path / "manifest.json").read_text()) == TWO
    assert os.listdir(tmp_path) == ["out"]


def test_a_process_killed_while_it_replaces_a_result_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "out"
    finish(path, ONE)
    (tmp_path / "out.partial").mkdir()
    os.replace(path, tmp_path / "out.partial" / "replaced")
    assert "is not empty" in refused(path)
    assert json.loads((path / "manifest.json").read_text()) == ONE


def test_folders_that_are_no_results_are_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.mkdir()
    finish(path)
    other = tmp_path / "photos"
    other.mkdir()
    (other / "a.jpg").write_text("a")
    assert "holds no earlier result (no manifest.json) and is not overwritten" in refused(other, overwrite=True)
    (tmp_path / "x.partial").mkdir()
    (tmp_path / "x.partial" / "mine").write_text("a")
    assert "is in the way and is not the state of a run" in refused(tmp_path / "x")
    assert (tmp_path / "x.partial" / "mine").exists()


def test_targets_that_cannot_be_written(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("a")
    assert f"The output {file} is a file; name a folder." in refused(file)
    assert "cannot be written: Not a directory; choose another" in refused(file / "out")
    assert "cannot be written" in refused(Path("/proc/no/such"))
    assert "cannot be the output folder" in refused(Path("/"))
    assert os.listdir(tmp_path) == ["file"]


def test_a_run_killed_at_any_time_leaves_whole_files(tmp_path: Path) -> None:
    code = """
        import sys, torch
        from fxfuse.output import OutputFolder
        with OutputFolder(sys.argv[1], {"a": 1}) as output:
            for i in range(10**6):
                output.checkpoint.save(f"level {i % 5}", {"w": torch.full((1000,), float(i))}, {"i": i})
                print(i, flush=True)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "out")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for _ in range(12):
        assert process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with OutputFolder(tmp_path / "out", {"a": 1}, resume=True) as output:
        for level in range(5):
            found = output.checkpoint.load(f"level {level}")
            assert found is not None
            assert torch.equal(found[0]["w"], torch.full((1000,), float(found[1]["i"])))


def test_checkpoints_keep_types_views_and_awkward_keys(tmp_path: Path) -> None:
    store = Checkpoint(tmp_path)
    base = torch.arange(12, dtype=torch.bfloat16).reshape(3, 4)
    tensors = {"t": base.T, "shared": base, "scalar": torch.tensor(3), "empty": torch.empty(0, 2)}
    store.save("a/b: ü" * 30, tensors)
    store.save("A/b: ü" * 30, {})
    found = store.load("a/b: ü" * 30)
    assert found is not None
    for key, value in tensors.items():
        assert torch.equal(found[0][key], value)
        assert found[0][key].dtype == value.dtype
    assert store.load("A/b: ü" * 30) == ({}, {})
    assert len(store) == 2


def test_a_state_that_cannot_be_written_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot be written to .*gone: No such file or directory; what was finished"):
        Checkpoint(tmp_path / "gone").save("level 0", {"a": torch.ones(1)})


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    store = Checkpoint(tmp_path)
    store.save("a", {})
    next(tmp_path.iterdir()).write_bytes(b"x")
    with pytest.raises(OutputError, match=r"The saved state .* is damaged .*; remove it or start over"):
        store.load("a")


def test_writing_replaces_whole_files_and_leaves_no_others(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", b"1")
    write_atomically(tmp_path / "a", b"2")
    assert (tmp_path / "a").read_bytes() == b"2"
    assert os.listdir(tmp_path) == ["a"]


def test_differences_are_found_at_any_depth() -> None:
    assert difference(ONE, TWO) == "`fit.steps` was 100 and is 150"
    assert difference({}, {"a": 1}) == "`a` was None and is 1"
    assert difference(ONE, ONE) == ""
