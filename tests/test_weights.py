import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fxfuse.errors import WeightsError
from fxfuse.weights import StateDict, check_finite, load_into, read_weights


class Code:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def failure(path: Path, module: nn.Module | None = None) -> str:
    with pytest.raises(WeightsError) as caught:
        load_into(module or net(), read_weights(path, "parent 'a'"), path, "parent 'a'")
    assert str(caught.value).startswith("parent 'a': ")
    return str(caught.value)


def loaded(path: Path) -> tuple[nn.Module, tuple[str, ...]]:
    module = net()
    notes = load_into(module, read_weights(path, "p"), path, "p")
    return module, notes


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("nest", [None, "state_dict", "model", "model_state_dict"])
def test_state_dicts_are_found_bare_or_nested(tmp_path: Path, nest: str | None) -> None:
    source, path = net(), tmp_path / "w.pt"
    state = source.state_dict()
    torch.save(state if nest is None else {"epoch": 3, nest: state}, path)
    module, notes = loaded(path)
    assert same(module, source)
    assert notes == (() if nest is None else (f"took the state dict under {nest!r}",))


def test_safetensors_are_read(tmp_path: Path) -> None:
    source, path = net(), tmp_path / "w.safetensors"
    save_file(source.state_dict(), path)
    assert same(loaded(path)[0], source)


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_weights_stay_in_the_file_and_the_file_stays_as_it_is(tmp_path: Path, name: str) -> None:
    source, target, path = net(), net(), tmp_path / name
    torch.save(source.state_dict(), path) if path.suffix == ".pt" else save_file(source.state_dict(), path)
    before, state = path.read_bytes(), read_weights(path, "p")
    load_into(target, state, path, "p")
    for key, parameter in target.named_parameters():
        assert parameter.data_ptr() == state.entries[key].data_ptr()
        assert parameter.requires_grad
    with torch.no_grad():
        target[0].weight.add_(1)
    assert path.read_bytes() == before
    assert same(loaded(path)[0], source)


def test_entries_that_a_hook_changes_are_copied(tmp_path: Path) -> None:
    class Halving(nn.Linear):
        def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
            state_dict[f"{prefix}weight"] = state_dict[f"{prefix}weight"] / 2
            super()._load_from_state_dict(state_dict, prefix, *rest)

    source, target, path = Halving(2, 2), Halving(2, 2), tmp_path / "w.pt"
    torch.save(source.state_dict(), path)
    load_into(target, read_weights(path, "p"), path, "p")
    assert torch.equal(target.weight, source.weight / 2)


def test_files_of_old_torch_are_read(tmp_path: Path) -> None:
    source, path = net(), tmp_path / "w.pt"
    torch.save(source.state_dict(), path, _use_new_zipfile_serialization=False)
    assert same(loaded(path)[0], source)


def test_prefixes_of_wrappers_are_removed_and_said(tmp_path: Path) -> None:
    source, path = net(), tmp_path / "w.pt"
    torch.save({f"module._orig_mod.{k}": v for k, v in source.state_dict().items()}, path)
    module, notes = loaded(path)
    assert same(module, source)
    assert notes == ("removed the prefix 'module.' from all keys", "removed the prefix '_orig_mod.' from all keys")


def test_a_prefix_that_the_model_has_itself_stays(tmp_path: Path) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 2)

    source, target, path = Wrapped(), Wrapped(), tmp_path / "w.pt"
    torch.save(source.state_dict(), path)
    assert load_into(target, read_weights(path, "p"), path, "p") == ()
    assert same(source, target)


def test_an_averaged_model_is_unwrapped(tmp_path: Path) -> None:
    source, path = net(), tmp_path / "w.pt"
    torch.save(torch.optim.swa_utils.AveragedModel(source).state_dict(), path)
    assert same(loaded(path)[0], source)


def test_batch_norm_counters_tied_weights_and_other_precisions_are_forgiven(tmp_path: Path) -> None:
    source, path = net(), tmp_path / "w.pt"
    state = {k: v for k, v in source.state_dict().items() if "num_batches" not in k}
    torch.save({k: v.half() for k, v in state.items()}, path)
    module, notes = loaded(path)
    assert notes == ("1 batch-norm counters were not stored", "converted float16 entries")
    torch.testing.assert_close(module.state_dict()["0.weight"], source.state_dict()["0.weight"].half().float())

    tied = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    tied["b"].weight = tied["a"].weight
    torch.save({"a.weight": torch.ones(2, 2)}, path)
    assert load_into(tied, read_weights(path, "p"), path, "p") == ("b.weight tied to stored entries",)
    assert torch.equal(tied["b"].weight, torch.ones(2, 2))


def test_keys_that_do_not_fit_are_counted_and_the_first_named(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    state = net().state_dict()
    state["0.weight"] = torch.zeros(5, 3)
    for number in range(6):
        state[f"extra.{number}"] = torch.zeros(number)
    del state["2.bias"]
    torch.save(state, path)
    message = failure(path)
    assert f"{path} does not fit: 1 of 9 keys missing (2.bias 2)" in message
    assert "6 unexpected (extra.0 0, extra.1 1, extra.2 2, extra.3 3, and 2 more)" in message
    assert "1 misshapen (0.weight 5x3 where the model has 4x3)" in message


def test_a_failed_load_leaves_the_module_as_it_was(tmp_path: Path) -> None:
    path, module = tmp_path / "w.pt", net()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    torch.save({**net().state_dict(), "0.weight": torch.zeros(5, 3)}, path)
    failure(path, module)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("nested", [False, True])
def test_code_in_a_checkpoint_is_refused_and_never_run(tmp_path: Path, protocol: int, nested: bool) -> None:
    path, trace = tmp_path / "w.pt", tmp_path / "ran"
    content: Any = Code(trace)
    torch.save({"state_dict": net().state_dict(), "x": content} if nested else content, path, pickle_protocol=protocol)
    message = failure(path)
    assert "needs code to be executed when it is loaded" in message
    assert "save model.state_dict()" in message
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    failure(path)
    assert not trace.exists()


def test_a_pickled_module_is_refused_with_its_class(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save(net(), path)
    assert "(torch.nn.modules.container.Sequential), which is refused" in failure(path)


def test_a_torchscript_file_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("net/constants.pkl", b"")
    assert "is a TorchScript program" in failure(tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04broken"])
def test_damaged_files_are_told_from_dangerous_ones(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    message = failure(path)
    assert str(path) in message
    assert "code to be executed" not in message


def test_a_truncated_file(tmp_path: Path) -> None:
    for name in ("w.pt", "w.safetensors"):
        path = tmp_path / name
        if name == "w.pt":
            torch.save(net().state_dict(), path)
        else:
            save_file(net().state_dict(), path)
        path.write_bytes(path.read_bytes()[:-50])
        assert str(path) in failure(path)


def test_files_that_hold_something_else_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save([1, 2], path)
    assert "holds a list, not a state dict" in failure(path)
    torch.save({"epoch": 3, "loss": 0.5}, path)
    assert "holds no state dict" in failure(path)
    assert "its keys: epoch, loss" in failure(path)
    assert "there is no weight file" in failure(tmp_path / "v.pt")
    assert "did you mean 'w.pt'?" in failure(tmp_path / "v.pt")
    assert "is a folder" in failure(tmp_path)


def test_weights_that_are_not_finite_are_counted() -> None:
    module = net()
    state = StateDict(module.state_dict())
    state.entries["2.weight"][0, :2] = torch.tensor([torch.nan, torch.inf])
    with pytest.raises(WeightsError, match=r"parent 'a': '2.weight' has 1 NaN and 1 infinite of 8 entries"):
        check_finite(module, "parent 'a'")
    check_finite(net(), "parent 'a'")
