import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fxfuse.errors import SourceError
from fxfuse.programs import load_program


class Code:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    exported = torch.export.export(module, (torch.zeros(2, 3),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    path = tmp_path_factory.mktemp("programs") / "net.pt2"
    torch.export.save(exported, path)
    return module, path


def failure(path: Path) -> str:
    with pytest.raises(SourceError) as caught:
        load_program(path, "parent 'a'")
    assert str(caught.value).startswith("parent 'a': ")
    return str(caught.value)


def changed(source: Path, target: Path, changes: dict[str, bytes], added: dict[str, bytes] | None = None) -> Path:
    """A copy of an archive with the members that end with a key replaced, and others added."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = next((c for end, c in changes.items() if name.endswith(end)), old.read(name))
            new.writestr(name, content)
        for name, content in (added or {}).items():
            new.writestr(f"{old.namelist()[0].split('/')[0]}/{name}", content)
    return target


def test_a_program_computes_what_its_module_does_at_any_batch_size(program: tuple[nn.Module, Path]) -> None:
    module, path = program
    back = load_program(path, "p")
    x = torch.randn(5, 3)
    assert torch.equal(back(x), module(x))
    assert list(back.state_dict()) == list(module.state_dict())


def test_pickled_code_is_refused_and_never_run(program: tuple[nn.Module, Path], tmp_path: Path) -> None:
    trace, buffer = tmp_path / "ran", io.BytesIO()
    torch.save((Code(trace),), buffer)
    evil = buffer.getvalue()
    path = changed(program[1], tmp_path / "a.pt2", {"sample_inputs/model.pt": evil})
    assert "needs code to be executed when it is loaded" in failure(path)
    with zipfile.ZipFile(program[1]) as archive:
        name = next(n for n in archive.namelist() if n.endswith("model_weights_config.json"))
        config = json.loads(archive.read(name))
    first = next(iter(config["config"].values()))
    first["use_pickle"] = True
    ends = {"weights_config.json": json.dumps(config).encode(), f"weights/{first['path_name']}": evil}
    path = changed(program[1], tmp_path / "b.pt2", ends)
    assert "needs code to be executed when it is loaded" in failure(path)
    assert not trace.exists()


def test_custom_objects_and_compiled_libraries_are_refused(program: tuple[nn.Module, Path], tmp_path: Path) -> None:
    constants = json.dumps({"config": {"thing": {"path_name": "custom_obj_0"}}}).encode()
    path = changed(program[1], tmp_path / "a.pt2", {"constants_config.json": constants})
    assert "(the custom object 'thing'), which is refused" in failure(path)
    path = changed(program[1], tmp_path / "b.pt2", {}, {"data/aotinductor/model/x.so": b"x"})
    assert "(a compiled library), which is refused" in failure(path)


def test_other_and_damaged_files(program: tuple[nn.Module, Path], tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    path.write_bytes(b"nonsense")
    assert "is not a torch.export program, or it is damaged" in failure(path)
    path.write_bytes(program[1].read_bytes()[:-100])
    assert "or it is damaged" in failure(path)
    changed(program[1], path, {"models/model.json": b"{}"})
    assert "cannot be read by torch.export.load, or it is damaged" in failure(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/constants.pkl", b"x")
    assert "(a TorchScript program), which is refused" in failure(path)
    assert "there is no file" in failure(tmp_path / "none.pt2")
