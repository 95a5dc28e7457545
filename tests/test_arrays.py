from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fxfuse.arrays import read_arrays
from fxfuse.errors import DataError

X = np.random.default_rng(0).normal(size=(5, 3, 2)).astype(np.float32)


def test_all_formats_give_the_arrays_back(tmp_path: Path) -> None:
    y = np.arange(5)
    np.save(tmp_path / "a.npy", X)
    np.savez(tmp_path / "b.npz", x=X, y=y, fortran=np.asfortranarray(X), scalar=np.float32(2), empty=X[:0])
    np.savez_compressed(tmp_path / "c.npz", x=X, y=y)
    save_file({"x": torch.from_numpy(X), "half": torch.from_numpy(X).bfloat16()}, tmp_path / "d.safetensors")
    assert torch.equal(read_arrays(tmp_path / "a.npy")["inputs"], torch.from_numpy(X))
    for name in ("b.npz", "c.npz", "d.safetensors"):
        assert torch.equal(read_arrays(tmp_path / name)["x"], torch.from_numpy(X))
    stored = read_arrays(tmp_path / "b.npz")
    assert torch.equal(stored["fortran"], torch.from_numpy(X))
    assert torch.equal(stored["y"], torch.from_numpy(y))
    assert (stored["scalar"].item(), stored["empty"].shape) == (2, (0, 3, 2))
    assert read_arrays(tmp_path / "d.safetensors")["half"].dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["big.npy", "big.npz"])
def test_only_what_is_read_is_loaded(tmp_path: Path, name: str) -> None:
    big = np.zeros((4096, 8192), dtype=np.uint8)
    np.save(tmp_path / name, big) if name.endswith(".npy") else np.savez(tmp_path / name, inputs=big)
    status = Path("/proc/self/statm")
    if not status.exists():
        pytest.skip("resident memory is read from /proc")

    def resident() -> int:
        return int(status.read_text().split()[1]) * 4096

    before = resident()
    x = read_arrays(tmp_path / name)["inputs"]
    assert x[torch.tensor([7, 4000])].sum() == 0
    assert resident() - before < big.nbytes / 4


def test_writing_to_a_mapped_array_leaves_the_file(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", X)
    read_arrays(tmp_path / "a.npy")["inputs"].zero_()
    assert np.array_equal(np.load(tmp_path / "a.npy"), X)


def test_objects_and_damage_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "o.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "o.npz", x=np.array([{}], dtype=object))
    np.savez(tmp_path / "s.npz", x=np.array(["a"]))
    for name in ("d.npy", "d.npz", "d.safetensors"):
        (tmp_path / name).write_bytes(b"nonsense")
    for name in ("o.npy", "o.npz", "d.npy", "d.npz", "d.safetensors"):
        with pytest.raises(DataError, match=f"{name} is not a readable"):
            read_arrays(tmp_path / name)
    with pytest.raises(DataError, match=r"s\.npz: 'x' holds <U1, not numbers"):
        read_arrays(tmp_path / "s.npz")
    with pytest.raises(DataError, match=r"There is no file .*/e\.npy"):
        read_arrays(tmp_path / "e.npy")
