import gzip
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fxfuse.models_zoo.data import (
    CIFAR10_ZIP,
    DataMissingError,
    cifar10,
    class_mix,
    digits,
    dirichlet_split,
    hold_out,
    mnist,
    read_idx,
)


def write_idx(path: Path, array: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


@pytest.fixture
def mnist_root(tmp_path: Path) -> Path:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for part, count in (("train", 6), ("t10k", 4)):
        write_idx(raw / f"{part}-images-idx3-ubyte.gz", generator.integers(0, 256, (count, 28, 28)).astype(np.uint8))
        write_idx(raw / f"{part}-labels-idx1-ubyte.gz", np.arange(count, dtype=np.uint8))
    return tmp_path


@pytest.fixture
def cifar_root(tmp_path: Path) -> Path:
    with zipfile.ZipFile(tmp_path / CIFAR10_ZIP, "w") as archive:
        for part in ("train", "test"):
            for label, name in enumerate(("ant", "bee")):
                for index in range(2):
                    file = io.BytesIO()
                    Image.new("RGB", (32, 32), (100 * label, 50 * index, 7)).save(file, "JPEG")
                    archive.writestr(f"cifar10/{part}/{name}/{index:04}.jpg", file.getvalue())
    return tmp_path


@pytest.mark.parametrize("below", ["", "MNIST", "MNIST/raw"])
def test_mnist_is_found_under_its_usual_folders(mnist_root: Path, below: str) -> None:
    images = mnist(mnist_root / below)
    assert images.pixels.shape == (6, 1, 28, 28)
    assert images.labels.tolist() == [0, 1, 2, 3, 4, 5]
    expected = (images.pixels / 255 - 0.1307) / 0.3081
    torch.testing.assert_close(images.normalised(), expected, rtol=1e-6, atol=1e-6)
    assert len(mnist(mnist_root, train=False)) == 4


def test_the_environment_names_the_data_folder(mnist_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FXFUSE_DATA", str(mnist_root))
    assert len(mnist()) == 6
    monkeypatch.delenv("FXFUSE_DATA")
    with pytest.raises(DataMissingError, match="set FXFUSE_DATA"):
        mnist()


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataMissingError, match=r"train-images-idx3-ubyte.gz is missing: looked in"):
        mnist(tmp_path)
    with pytest.raises(DataMissingError, match=CIFAR10_ZIP):
        cifar10(tmp_path)
    short = tmp_path / "short.gz"
    short.write_bytes(gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 9, 1])))
    with pytest.raises(ValueError, match="damaged"):
        read_idx(short)
    short.write_bytes(gzip.compress(b"text"))
    with pytest.raises(ValueError, match="not an idx file"):
        read_idx(short)


def test_cifar_is_decoded_once(cifar_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = cifar10(cifar_root, cache=cifar_root / "cache")
    assert first.classes == ("ant", "bee")
    assert first.labels.tolist() == [0, 0, 1, 1]
    assert first.pixels.shape == (4, 3, 32, 32)
    colours = first.pixels[:, :, 16, 16].int()
    expected = torch.tensor([[0, 0, 7], [0, 50, 7], [100, 0, 7], [100, 50, 7]])
    assert (colours - expected).abs().max() <= 4  # JPEG rounds colours
    monkeypatch.setattr("fxfuse.models_zoo.data._decode", None)
    again = cifar10(cifar_root / CIFAR10_ZIP, cache=cifar_root / "cache")
    assert torch.equal(first.pixels, again.pixels)


def test_a_damaged_cache_is_decoded_anew_and_an_unwritable_one_done_without(cifar_root: Path) -> None:
    first = cifar10(cifar_root, cache=cifar_root / "cache")
    (file,) = (cifar_root / "cache").iterdir()
    file.write_bytes(b"half a file")
    assert torch.equal(cifar10(cifar_root, cache=cifar_root / "cache").pixels, first.pixels)
    assert file.stat().st_size > first.pixels.numel()
    blocked = cifar_root / "blocked"
    blocked.write_text("a file where the cache folder should be")
    assert torch.equal(cifar10(cifar_root, cache=blocked).pixels, first.pixels)


def test_digits_are_normalised() -> None:
    images = digits()
    assert images.pixels.shape == (1797, 1, 8, 8)
    x = images.normalised()
    assert abs(float(x.mean())) < 1e-3
    assert abs(float(x.std()) - 1) < 1e-3
    part = images.subset(torch.tensor([5, 3]))
    assert torch.equal(part.normalised(), images.normalised(torch.tensor([5, 3])))


def test_hold_out_is_a_partition() -> None:
    kept, held = hold_out(100, 10, seed=3)
    assert len(held) == 10
    assert torch.equal(torch.cat([kept, held]).sort().values, torch.arange(100))
    assert torch.equal(held, hold_out(100, 10, seed=3)[1])
    assert not torch.equal(held, hold_out(100, 10, seed=4)[1])
    with pytest.raises(ValueError, match="held must be between"):
        hold_out(10, 10)


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_dirichlet_split_is_a_partition_and_repeats(parts: int) -> None:
    labels = torch.arange(1000) % 10
    split = dirichlet_split(labels, parts, alpha=0.5, seed=2)
    assert len(split) == parts
    assert torch.equal(torch.cat(split).sort().values, torch.arange(1000))
    again = dirichlet_split(labels, parts, alpha=0.5, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(split, again, strict=True))


def test_alpha_sets_how_unequal_the_mixes_are() -> None:
    labels = torch.arange(10_000) % 10

    def spread(alpha: float) -> float:
        part = dirichlet_split(labels, 2, alpha=alpha, seed=0)[0]
        return float(labels[part].bincount(minlength=10).float().std())

    assert spread(0.1) > spread(1.0) > spread(100.0) > 0


def test_class_mix_gives_the_shares_asked_for() -> None:
    labels = torch.arange(200) % 2
    first, second = class_mix(labels, [[0.8, 0.0], [0.1, 1.0]])
    assert labels[first].bincount(minlength=2).tolist() == [80, 0]
    assert labels[second].bincount(minlength=2).tolist() == [10, 100]
    assert not set(first.tolist()) & set(second.tolist())


@pytest.mark.parametrize("shares", [[[0.5]], [[0.5, -0.1]], [[0.7, 0.5], [0.7, 0.5]], [0.5, 0.5]])
def test_class_mix_rejects_impossible_shares(shares: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="shares must"):
        class_mix(torch.arange(10) % 2, shares)


def test_dirichlet_split_rejects_bad_parameters() -> None:
    with pytest.raises(ValueError, match="alpha positive"):
        dirichlet_split(torch.arange(10), 2, alpha=0.0)
