import json
import os
import subprocess
import sys

import onnxruntime
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import fx, nn

from fxfuse.errors import ExportError, OutputError, SourceError, WeightsError
from fxfuse.export import LEVELS_KEY, exported, load_result, to_onnx, to_pt2, to_safetensors


class Tied(nn.Module):
    """An image network with batch norm and two layers that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.one = nn.Linear(6, 6)
        self.two = nn.Linear(6, 6)
        self.two.weight = self.one.weight
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x))).mean((2, 3))
        return self.head(x + self.two(torch.relu(self.one(x))))


class Tokens(nn.Module):
    """Several inputs (one never read, one without a batch), integers, a dict of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, unread, ids, scale):  # noqa: ARG002 - that is the point
        hidden = self.embed(ids) * scale
        return {"logits": self.head(hidden.mean(1)), "hidden": hidden, "best": hidden.mean(1).argmax(-1)}


class Bessel(Tied):
    """Ends in an operator that ONNX does not know."""

    def forward(self, x):
        return torch.special.bessel_j0(super().forward(x))


class FixedBatch(Tied):
    """Works for two samples only."""

    def forward(self, x):
        return super().forward(x.reshape(2, 3, 8, 8))


def helper(x):
    """A function of this file in the graph, as normalisation leaves its own."""
    return x * 2 + 1


fx.wrap("helper")


class Helped(Tied):
    """Calls a function that only this file knows."""

    def forward(self, x):
        return helper(super().forward(x))


IMAGES = (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)),)


def traced(kind=Tied):
    torch.manual_seed(0)
    module = fx.symbolic_trace(kind())
    for buffer in module.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    return module.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An output folder as a run leaves it."""
    path = tmp_path_factory.mktemp("result")
    module = traced(Helped)
    to_pt2(module, IMAGES, path / "model.pt2")
    to_safetensors(module, path / "model.safetensors", {"seed": "0"})
    (path / "levels.json").write_text('{"levels": [{"level": "stem"}]}')
    return path


def test_onnx_equals_the_network_at_all_batch_sizes(tmp_path, capfd):
    module = traced().train()
    report = to_onnx(
        module, IMAGES, tmp_path / "m.onnx", level_table=[{"name": "stem"}], input_names=["image"], output_names=["y"]
    )
    assert report.batches == (1, 3, 17)
    assert report.max_abs < 1e-5
    assert report.max_rel < 1e-5
    assert (report.inputs, report.outputs) == (("image",), ("y",))
    assert module.training
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    assert json.loads(session.get_modelmeta().custom_metadata_map[LEVELS_KEY]) == [{"name": "stem"}]
    assert session.get_inputs()[0].shape == ["batch", 3, 8, 8]
    assert os.listdir(tmp_path) == ["m.onnx"]
    assert capfd.readouterr() == ("", "")


def test_onnx_takes_several_inputs_and_outputs(tmp_path):
    example = (torch.zeros(2, 3), torch.randint(0, 7, (2, 5)), torch.full((4,), 2.0))
    report = to_onnx(traced(Tokens), example, tmp_path / "m.onnx")
    assert report.inputs == ("unread", "ids", "scale")
    assert len(report.outputs) == 3


def test_onnx_accepts_an_example_of_one_sample(tmp_path):
    assert to_onnx(traced(), (IMAGES[0][:1],), tmp_path / "m.onnx").max_rel < 1e-5


def test_an_operator_without_onnx_form_is_named_with_its_line(tmp_path):
    module = traced(Bessel)
    (node,) = (n for n in module.graph.nodes if n.name == "special_bessel_j0")
    node.stack_trace = 'File "/home/me/nets.py", line 12, in forward\n    return bessel(x)'
    with pytest.raises(ExportError, match=r"prims.bessel_j0 at node 'special_bessel_j0' \(nets.py:12\)"):
        to_onnx(module, IMAGES, tmp_path / "m.onnx")
    assert not os.listdir(tmp_path)


def test_a_fixed_batch_is_named(tmp_path):
    with pytest.raises(ExportError, match="its code fixes the batch size at 2"):
        to_onnx(traced(FixedBatch), IMAGES, tmp_path / "m.onnx")


def test_a_file_that_disagrees_is_not_left_behind(tmp_path):
    (tmp_path / "m.onnx").write_text("an older file")
    with pytest.raises(ExportError, match="disagrees with the network at batch size 1"):
        to_onnx(traced(), IMAGES, tmp_path / "m.onnx", tolerance=-1.0)
    assert os.listdir(tmp_path) == ["m.onnx"]
    assert (tmp_path / "m.onnx").read_text() == "an older file"


def test_a_folder_that_is_not_there_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="cannot write"):
        to_safetensors(traced(), tmp_path / "none" / "m.safetensors")


def test_safetensors_hold_tied_weights_under_every_name(tmp_path):
    module = traced()
    module.head.weight = nn.Parameter(torch.randn(6, 4).T)  # not contiguous
    to_safetensors(module, tmp_path / "m.safetensors", {"seed": "0"})
    fresh = Tied()
    fresh.load_state_dict(load_file(tmp_path / "m.safetensors"), strict=True)
    torch.testing.assert_close(fresh.eval()(*IMAGES), module(*IMAGES), rtol=0, atol=0)
    assert fresh.one.weight is fresh.two.weight
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        words = file.metadata()
    assert words["seed"] == "0"
    assert json.loads(words["tied"]) == [["one.weight", "two.weight"]]


def test_weights_are_written_whole_with_the_usual_permissions_or_not_at_all(tmp_path, monkeypatch):
    network = nn.Linear(3, 2)
    (tmp_path / "usual").touch()
    assert to_safetensors(network, tmp_path / "w").stat().st_mode == (tmp_path / "usual").stat().st_mode

    def full(*_, **__):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("fxfuse.export.weights_file.save_file", full)
    with pytest.raises(OutputError, match=r"cannot write .*other: I/O error: No space left"):
        to_safetensors(network, tmp_path / "other")
    assert {file.name for file in tmp_path.iterdir()} == {"usual", "w"}


def test_state_that_is_no_tensor_is_refused(tmp_path):
    module = traced()
    module.get_extra_state = lambda: {"a": 1}
    type(module).get_extra_state = lambda _: {"a": 1}
    with pytest.raises(ExportError, match="'_extra_state' in the state dict is a dict"):
        to_safetensors(module, tmp_path / "m.safetensors")


LOAD_ALONE = """
import sys, warnings
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("fxfuse", "tests", "test_export"):
            raise ImportError(name + " must not be needed")
sys.meta_path.insert(0, Block())
warnings.simplefilter("ignore")
import torch
program = torch.export.load(sys.argv[1])
inputs = torch.load(sys.argv[2], weights_only=True)
torch.save(program.module()(inputs), sys.argv[3])
"""


def test_pt2_loads_without_fxfuse_and_without_the_users_code(folder, tmp_path):
    inputs = torch.randn(5, 3, 8, 8)
    torch.save(inputs, tmp_path / "in.pt")
    command = [sys.executable, "-I", "-c", LOAD_ALONE, folder / "model.pt2", tmp_path / "in.pt", tmp_path / "out.pt"]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    torch.testing.assert_close(torch.load(tmp_path / "out.pt", weights_only=True), traced(Helped)(inputs))


def test_a_result_is_read_back(folder, tmp_path):
    loaded = load_result(folder)
    inputs = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(loaded.module(inputs), traced(Helped)(inputs))
    assert loaded.levels == ({"level": "stem"},)
    assert loaded.example[0].shape == IMAGES[0].shape
    report = to_onnx(loaded.program, loaded.example, tmp_path / "m.onnx", level_table=loaded.levels)
    assert report.max_rel < 1e-5
    assert exported(loaded.program, loaded.example) is loaded.program


def copied(folder, target):
    for name in ("model.pt2", "model.safetensors", "levels.json"):
        (target / name).write_bytes((folder / name).read_bytes())
    return target


def test_the_weights_file_beside_the_program_wins(folder, tmp_path):
    copied(folder, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["head.bias"] = weights["head.bias"] + 1
    save_file(weights, tmp_path / "model.safetensors")
    inputs = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(load_result(tmp_path).module(inputs), load_result(folder).module(inputs) + 2)


def test_a_folder_that_is_no_result_is_named(folder, tmp_path):
    with pytest.raises(SourceError, match=r"is not a result of fxfuse: it has no model\.pt2"):
        load_result(tmp_path)
    copied(folder, tmp_path)
    (tmp_path / "levels.json").write_text("[")
    with pytest.raises(SourceError, match=r"cannot read .*levels\.json"):
        load_result(tmp_path)
    (tmp_path / "model.pt2").write_text("no program")
    with pytest.raises(SourceError, match=r"cannot load .*model\.pt2"):
        load_result(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("head.bias"), "misses 'head.bias'"),
        (lambda w: w.update(more=torch.zeros(1)), "has the unexpected entry 'more'"),
        (lambda w: w.update({"head.bias": torch.zeros(9)}), r"'head.bias' in .* has shape \(9,\) instead of \(4,\)"),
    ],
    ids=["missing", "unexpected", "misshapen"],
)
def test_weights_of_another_network_are_refused(folder, tmp_path, change, message):
    copied(folder, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    change(weights)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=message):
        load_result(tmp_path)
