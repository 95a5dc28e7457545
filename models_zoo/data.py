"""Image data from local files, in memory as bytes, and unequal class mixes of it. Nothing is ever downloaded.

``x = (pixels / scale - mean) / std`` per channel is what models see. Where a ``root`` is not given, the environment
variable ``FXFUSE_DATA`` names the folder.

A class mix is a matrix of shares, parts x classes: entry (p, c) is the share of class ``c``'s images that part ``p``
gets. Dirichlet splits draw each column from ``Dirichlet(alpha, ..., alpha)``: the smaller ``alpha``, the more unequal.
"""

import gzip
import io
import os
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

MNIST_MEAN, MNIST_STD = (0.1307,), (0.3081,)
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
DIGITS_MEAN, DIGITS_STD = (0.3053,), (0.3760,)
CIFAR10_ZIP = "cifar10-imagefolder.zip"


class DataMissingError(FileNotFoundError):
    """Files of a data set are not where they were looked for; the message says where that was."""


@dataclass(frozen=True, slots=True)
class Images:
    """Labelled images: ``pixels`` uint8 (samples x channels x height x width), ``labels`` int64 (samples).

    ``scale`` is the largest possible pixel value; ``mean`` and ``std`` (per channel) refer to ``pixels / scale``.
    """

    name: str
    pixels: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 255.0

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> "Images":
        """The images at ``indices``, in that order."""
        return Images(
            self.name, self.pixels[indices], self.labels[indices], self.classes, self.mean, self.std, self.scale
        )

    def normalised(self, indices: Tensor | None = None) -> Tensor:
        """Model inputs, float32, of the images at ``indices`` or of all."""
        return self.normalise(self.pixels if indices is None else self.pixels[indices])

    def normalise(self, pixels: Tensor) -> Tensor:
        """Model inputs, float32, from bytes of the same kind as ``pixels`` on any device."""
        mean = torch.tensor(self.mean, device=pixels.device).view(-1, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(-1, 1, 1)
        return (pixels.float() / self.scale - mean) / std


# --------------------------------------------------------------------------------------------- readers


def mnist(root: str | Path | None = None, train: bool = True) -> Images:
    """MNIST in its original order from the four ``.gz`` files, under ``root``, ``root/raw`` or ``root/MNIST/raw``."""
    part = "train" if train else "t10k"
    folder = _find(root, ("MNIST/raw", "raw", "."), f"{part}-images-idx3-ubyte.gz")
    pixels = read_idx(folder / f"{part}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{part}-labels-idx1-ubyte.gz")
    classes = tuple(str(digit) for digit in range(10))
    return Images("MNIST", pixels[:, None], labels.long(), classes, MNIST_MEAN, MNIST_STD)


def read_idx(path: str | Path) -> Tensor:
    """A gzipped idx file of bytes: two zero bytes, type 8, number of dimensions, big-endian sizes, values."""
    if not Path(path).is_file():
        raise DataMissingError(f"there is no file {path}")
    raw = gzip.decompress(Path(path).read_bytes())
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is not an idx file of unsigned bytes: it starts with {raw[:4].hex()}")
    start = 4 + 4 * raw[3]
    sizes = tuple(np.frombuffer(raw, ">u4", count=raw[3], offset=4).tolist())
    if len(raw) - start != np.prod(sizes):
        raise ValueError(f"{path} is damaged: its header says {sizes}, but {len(raw) - start} values follow")
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=start).reshape(sizes).copy())


def cifar10(root: str | Path | None = None, train: bool = True, cache: str | Path | None = None) -> Images:
    """CIFAR-10 from the zipped image folder ``cifar10-imagefolder.zip`` in ``root`` (or ``root`` is that file).

    Classes and images are in the order of their names, as in torchvision's ``ImageFolder``. The JPEG files are decoded
    once and kept as ``.npy`` in the folder ``cache`` (default: ``fxfuse`` in the user's cache folder).
    """
    path = Path(root) if root is not None and Path(root).is_file() else _find(root, (".",), CIFAR10_ZIP) / CIFAR10_ZIP
    prefix = f"cifar10/{'train' if train else 'test'}/"
    with zipfile.ZipFile(path) as archive:
        names = sorted(n for n in archive.namelist() if n.startswith(prefix) and n.endswith(".jpg"))
        if not names:
            raise DataMissingError(f"{path} holds no images under {prefix}: it is not the expected image folder")
        classes = sorted({name.split("/")[2] for name in names})
        labels = torch.tensor([classes.index(name.split("/")[2]) for name in names])
        folder = Path(cache) if cache is not None else _user_cache()
        cached = folder / f"cifar10-{prefix.split('/')[1]}-{path.stat().st_size}.npy"
        array = _load_cached(cached, (len(names), 32, 32, 3))
        if array is None:
            array = np.stack([_decode(archive.read(name)) for name in names])
            _save_cached(cached, array)
    pixels = torch.from_numpy(array).permute(0, 3, 1, 2).contiguous()
    return Images("CIFAR-10", pixels, labels, tuple(classes), CIFAR10_MEAN, CIFAR10_STD)


def digits() -> Images:
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels (values 0 to 16); they come with the library."""
    from sklearn.datasets import load_digits  # slow to import, and only this function needs it

    images, labels = load_digits(return_X_y=True)
    pixels = torch.from_numpy(np.asarray(images, np.uint8)).view(-1, 1, 8, 8)
    classes = tuple(str(digit) for digit in range(10))
    return Images("digits", pixels, torch.from_numpy(labels).long(), classes, DIGITS_MEAN, DIGITS_STD, scale=16.0)


def _find(root: str | Path | None, places: Sequence[str], file: str) -> Path:
    """The folder below ``root`` that holds ``file``."""
    start = root if root is not None else os.environ.get("FXFUSE_DATA")
    if start is None:
        raise DataMissingError(f"no data folder given: pass root, or set FXFUSE_DATA to the folder that holds {file}")
    for place in places:
        if (Path(start) / place / file).is_file():
            return Path(start) / place
    tried = ", ".join(str(Path(start) / place) for place in places)
    raise DataMissingError(f"{file} is missing: looked in {tried}")


def _decode(jpeg: bytes) -> npt.NDArray[np.uint8]:
    with Image.open(io.BytesIO(jpeg)) as image:
        return np.asarray(image.convert("RGB"))


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fxfuse"


def _load_cached(path: Path, shape: tuple[int, ...]) -> npt.NDArray[np.uint8] | None:
    """The cached array, or nothing if there is none or it is not what it should be."""
    try:
        array: npt.NDArray[np.uint8] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return array if array.shape == shape and array.dtype == np.uint8 else None


def _save_cached(path: Path, array: npt.NDArray[np.uint8]) -> None:
    """Write beside and rename, so that nobody reads half a file; a cache that cannot be written is done without."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".npy", delete=False) as file:
            np.save(file, array)
        os.replace(file.name, path)
    except OSError:
        return


# --------------------------------------------------------------------------------------------- splits


def hold_out(count: int, held: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Indices of ``count`` samples in two disjoint random parts, both ascending; the second has ``held`` samples."""
    if not 0 < held < count:
        raise ValueError(f"held must be between 1 and {count - 1}. Got {held}")
    order = torch.from_numpy(np.random.default_rng(seed).permutation(count))
    return order[held:].sort().values, order[:held].sort().values


def dirichlet_split(labels: Tensor, parts: int, alpha: float = 1.0, seed: int = 0) -> tuple[Tensor, ...]:
    """Disjoint index sets, one per part, that together are all samples; class shares are drawn per class.

    ``labels`` is int64 (samples). Raises ``ValueError`` for less than one part or an ``alpha`` that is not positive.
    """
    if parts < 1 or not alpha > 0:
        raise ValueError(f"parts must be at least 1 and alpha positive. Got parts={parts}, alpha={alpha}")
    classes = int(labels.max()) + 1
    shares = np.random.default_rng(seed).dirichlet([alpha] * parts, size=classes).T
    return class_mix(labels, shares.tolist(), seed=seed)


def class_mix(labels: Tensor, shares: Sequence[Sequence[float]], seed: int = 0) -> tuple[Tensor, ...]:
    """Disjoint index sets with given ``shares`` (parts x classes, not negative, each column's sum at most 1).

    Cut points are rounded to whole samples; a column that sums to 1 is used up. Which images a part gets is random.
    """
    table = np.asarray(shares, np.float64)
    classes = int(labels.max()) + 1
    if table.ndim != 2 or table.shape[1] != classes:
        raise ValueError(f"shares must be a table with one column per class, {classes}. Got shape {table.shape}")
    if (table < 0).any() or (table.sum(0) > 1 + 1e-9).any():
        raise ValueError("shares must not be negative, and no class may be shared out to more than 1 in all")
    generator = np.random.default_rng([seed, 1])
    parts: list[list[npt.NDArray[np.int64]]] = [[] for _ in table]
    for index in range(classes):
        members = generator.permutation(np.flatnonzero(labels.numpy() == index))
        cuts = np.rint(len(members) * np.cumsum(table[:, index])).astype(int)
        for part, chunk in zip(parts, np.split(members, cuts), strict=False):
            part.append(chunk)
    return tuple(torch.from_numpy(np.sort(np.concatenate(chunks))) for chunks in parts)
