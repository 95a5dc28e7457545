import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fxfuse.errors import DataError
from fxfuse.folders import image_folder, torchvision_dataset
from fxfuse.recipe import DataSpec


def picture(path: Path, value: int = 0, size: tuple[int, int] = (8, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


def mnist(root: Path, count: int = 12) -> None:
    """A data set in MNIST's format: image ``i`` is all ``i``, its label ``i % 10``."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        images = np.repeat(np.arange(count, dtype=np.uint8), 28 * 28).tobytes()
        labels = (np.arange(count, dtype=np.uint8) % 10).tobytes()
        for name, data in (
            (f"{part}-images-idx3-ubyte", struct.pack(">IIII", 2051, count, 28, 28) + images),
            (f"{part}-labels-idx1-ubyte", struct.pack(">II", 2049, count) + labels),
        ):
            (raw / name).write_bytes(data)
            (raw / f"{name}.gz").write_bytes(gzip.compress(data))


def test_sixteen_bits_keep_their_range(tmp_path: Path) -> None:
    deep = np.array([[0, 257, 32896], [65535, 12850, 1]], np.uint16)
    for place in ("flat/1.png", "classes/a/1.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(deep).save(tmp_path / place)
    want = [[0, 1, 128], [255, 50, 0]]
    for image in (image_folder(tmp_path / "flat")[0], image_folder(tmp_path / "classes")[0][0]):
        assert np.asarray(image)[..., 0].tolist() == want
    Image.fromarray(deep.astype(np.float32)).save(tmp_path / "flat" / "0.tiff")
    with pytest.raises(DataError, match=r"images of mode 'F' hold 32-bit values.*as arrays"):
        image_folder(tmp_path / "flat")[0]


def test_folders_of_classes_and_flat_folders(tmp_path: Path) -> None:
    for name in ("b/2.png", "a/1.png", "b/1.jpg"):
        picture(tmp_path / "classes" / name)
        picture(tmp_path / "flat" / name.replace("/", ""), value=ord(name[0]))
    (tmp_path / "flat" / "notes.txt").write_text("a")
    classes = image_folder(tmp_path / "classes")
    assert [classes[i][1] for i in range(3)] == [0, 1, 1]
    flat = image_folder(tmp_path / "flat")
    assert len(flat) == 3  # type: ignore[arg-type]
    assert flat[0].getpixel((0, 0)) == (ord("a"),) * 3


def test_folders_that_cannot_be_understood(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no images"):
        image_folder(tmp_path / "empty")
    picture(tmp_path / "both" / "a.png")
    picture(tmp_path / "both" / "cat" / "a.png")
    with pytest.raises(DataError, match="holds images and also folders of images"):
        image_folder(tmp_path / "both")
    picture(tmp_path / "hole" / "cat" / "a.png")
    (tmp_path / "hole" / "dog").mkdir()
    with pytest.raises(DataError, match="hole cannot be used: Found no valid file for the classes dog"):
        image_folder(tmp_path / "hole")


def test_torchvision_data_sets_by_name(tmp_path: Path) -> None:
    mnist(tmp_path)
    for split, train in (("train", True), ("test", False)):
        data = torchvision_dataset("MNIST", DataSpec(source="torchvision:MNIST", root=str(tmp_path), split=split))
        assert data.train is train
        assert data[11][1] == 1
    fake = torchvision_dataset("FakeData", DataSpec(source="torchvision:FakeData(size=3)"))
    assert len(fake) == 3


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("MNITS", {}, "torchvision has no such data set; did you mean 'MNIST'?"),
        ("MNIST", {}, "say by `root` in which folder its files are"),
        ("MNIST", {"root": "/no/such"}, "there is no folder /no/such"),
        ("MNIST", {"root": "."}, "Dataset not found"),
        ("MNIST", {"root": ".", "split": "val"}, "`split` must be 'train' or 'test'. Got 'val'."),
        ("MNIST", {"root": ".", "args": {"download": True}}, "nothing is downloaded here"),
        ("FakeData", {"split": "train"}, "this data set has no splits"),
        ("SVHN", {"root": ".", "split": "vall"}, "Unknown value 'vall'"),
    ],
)
def test_data_sets_that_cannot_be_used(
    name: str, settings: dict[str, object], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        torchvision_dataset(name, DataSpec(source=f"torchvision:{name}", **settings))
    assert str(caught.value).startswith(f"data 'torchvision:{name}': ")
    assert expected in str(caught.value)
