from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fxfuse.errors import SourceError, WeightsError
from fxfuse.provenance import sha256_of
from fxfuse.recipe import ParentSpec, TargetSpec
from fxfuse.sources import load_parent, load_target

CODE = """
from torch import nn

def build(width=4):
    return nn.Sequential(nn.Linear(3, width), nn.Dropout(), nn.Linear(width, 2))

def wrong():
    return {"weights": 3}

ready = build()
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "net.py"
    path.write_text(CODE)
    return path


def failure(spec: ParentSpec | str) -> str:
    with pytest.raises(SourceError) as caught:
        load_parent(spec)
    return str(caught.value)


def test_a_factory_with_weights(file: Path, tmp_path: Path) -> None:
    weights = tmp_path / "w.safetensors"
    source = load_parent(f"{file}:build(width=8)").module
    save_file(source.state_dict(), weights)
    parent = load_parent(ParentSpec(source=f"{file}:build", args={"width": 8}, weights=str(weights)))
    assert parent.name == "w"
    assert not parent.module.training
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in parent.module.state_dict().items())
    assert parent.files == {str(file): sha256_of(file), str(weights): sha256_of(weights)}
    assert "with w.safetensors (50 parameters)" in parent.description
    assert parent.notes == ()


def test_a_parent_without_weights_says_so(file: Path) -> None:
    assert load_parent(f"{file}:ready").notes == ("no weights given: as its source made it",)


def test_a_module_in_python_is_taken_as_it_is() -> None:
    module = nn.Linear(2, 2)
    parent = load_parent(module, name="mine")
    assert parent.module is module
    assert (parent.name, parent.description) == ("mine", "Linear given in Python (6 parameters)")


def test_torchvision_builders_by_name_never_download() -> None:
    parent = load_parent(ParentSpec(source="torchvision:squeezenet1_1", args={"num_classes": 7}))
    assert parent.module(torch.zeros(2, 3, 64, 64)).shape == (2, 7)
    assert load_parent("torchvision:squeezenet1_1(num_classes=5)").name == "squeezenet1_1"
    assert "torchvision has no model 'resnet19'; did you mean 'resnet18'?" in failure("torchvision:resnet19")
    assert "'weights' would download weights; give them as a file" in failure("torchvision:resnet18(weights='DEFAULT')")
    assert "resnet18() failed: TypeError" in failure("torchvision:resnet18(widht=3)")
    segmentation = load_parent("torchvision:lraspp_mobilenet_v3_large(num_classes=3)")
    assert segmentation.module.training is False


def test_an_exported_program_is_a_parent(tmp_path: Path) -> None:
    module, path = nn.Linear(3, 2), tmp_path / "net.pt2"
    torch.export.save(torch.export.export(module, (torch.zeros(2, 3),)), path)
    parent = load_parent(str(path))
    x = torch.randn(2, 3)
    assert torch.equal(parent.module(x), module(x))
    assert (parent.name, parent.files, parent.notes) == ("net", {str(path): sha256_of(path)}, ())
    assert "takes no `args`" in failure(ParentSpec(source=str(path), args={"a": 1}))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("resnet18", "did you mean 'torchvision:resnet18'?"),
        ("w.safetensors", "w.safetensors holds weights alone; give it under `weights`"),
        ("net.onnx", "is an ONNX file, which cannot be fused"),
        ("net.py", "say which factory in the file: 'net.py:factory'"),
        ("something", "not of the form 'module:factory', 'file.py:factory', 'torchvision:name' or 'program.pt2'"),
        ("none.pt2", "there is no file none.pt2"),
        (".", ". is a folder; name the code or the program in it"),
        ("no_such.module:f", "there is no module 'no_such'"),
    ],
)
def test_sources_that_cannot_be_used_name_the_parent_and_the_cure(source: str, expected: str) -> None:
    message = failure(ParentSpec(source=source, name="first"))
    assert message.startswith("parent 'first': ")
    assert expected in message


def test_a_factory_must_give_a_module(file: Path) -> None:
    assert f"{file}:wrong gives a dict, not a torch.nn.Module" in failure(f"{file}:wrong")


def test_weights_must_fit_and_be_finite(file: Path, tmp_path: Path) -> None:
    weights = tmp_path / "w.pt"
    state = load_parent(f"{file}:build").module.state_dict()
    torch.save(state, weights)
    spec = ParentSpec(source=f"{file}:build(width=5)", weights=str(weights), name="first")
    with pytest.raises(WeightsError, match=r"parent 'first': .*w\.pt does not fit: 3 misshapen \(0.weight 4x3 where"):
        load_parent(spec)
    state["2.bias"][1] = torch.nan
    torch.save(state, weights)
    with pytest.raises(WeightsError, match=r"parent 'w': '2.bias' has 1 NaN of 2 entries"):
        load_parent(ParentSpec(source=f"{file}:build", weights=str(weights)))


def test_a_target_is_built_like_a_parent(file: Path) -> None:
    target = load_target(TargetSpec(source=f"{file}:build(width=6)"))
    assert target is not None
    assert target.module.state_dict()["0.weight"].shape == (6, 3)
    assert load_target(TargetSpec(width=1.5)) is None
    with pytest.raises(SourceError, match=r"target 'nothing': .* has no 'nothing'"):
        load_target(TargetSpec(source=f"{file}:nothing"))
