"""Folders of images, and torchvision's data sets by name. Nothing is ever downloaded."""

import inspect
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset
from torchvision import datasets
from torchvision.datasets.folder import IMG_EXTENSIONS

from fxfuse.errors import DataError, nearest
from fxfuse.factories import Reference, beside
from fxfuse.preprocess import eight_bit
from fxfuse.recipe import DataSpec

SPLITS = ("split", "image_set", "what", "train", "background")
"""The names that torchvision's data sets have for the choice of a part; the last two are flags."""


class FlatFolder(Dataset[Image.Image]):
    """The images of one folder in the order of their names, without labels."""

    def __init__(self, root: Path) -> None:
        self.files = sorted(path for path in root.iterdir() if is_image(path))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Image.Image:
        return load_image(str(self.files[index]))


def load_image(path: str) -> Image.Image:
    """An image file in colour, 8 bits per channel."""
    with Image.open(path) as image:
        return eight_bit(image).convert("RGB")


def is_image(path: Path) -> bool:
    """Whether a path is a file with an image's suffix."""
    return path.suffix.lower() in IMG_EXTENSIONS and path.is_file()


def image_folder(root: Path) -> Dataset[Any]:
    """A folder with one folder of images per class, or with images alone (then without labels).

    Raises ``DataError`` if there are no images, or both.
    """
    flat = any(is_image(path) for path in root.iterdir())
    classes = [path for path in sorted(root.iterdir()) if path.is_dir()]
    nested = any(is_image(path) for folder in classes for path in folder.rglob("*"))
    if flat and nested:
        raise DataError(f"The folder {root} holds images and also folders of images; classes cannot be told apart.")
    if flat:
        return FlatFolder(root)
    if not nested:
        raise DataError(f"The folder {root} holds no images ({', '.join(IMG_EXTENSIONS)}), nor folders of them.")
    try:
        return datasets.ImageFolder(str(root), loader=load_image)
    except FileNotFoundError as error:
        raise DataError(f"The image folder {root} cannot be used: {' '.join(str(error).split())}") from None


def torchvision_dataset(name: str, spec: DataSpec) -> Any:
    """A torchvision data set by its class's name, from the files under ``spec.root``.

    ``spec.split`` becomes the argument that the class has for it: a name, or ``train=True`` for ``train``. Raises
    ``DataError`` if there is no such class, no such split, or no files.
    """
    subject = f"data 'torchvision:{name}'"
    if name not in datasets.__all__:
        raise DataError(f"{subject}: torchvision has no such data set; {nearest(name, datasets.__all__)}")
    kind = getattr(datasets, name)
    parameters = inspect.signature(kind).parameters
    positional, keywords = Reference(spec.source, subject, DataError).arguments(spec.args)
    if spec.root is not None:
        root = Path(spec.root).expanduser()
        if not root.is_dir():
            raise DataError(f"{subject}: there is no folder {root}{beside(root)}")
        keywords["root"] = str(root)
    elif "root" in parameters and parameters["root"].default is inspect.Parameter.empty and not positional:
        raise DataError(f"{subject}: say by `root` in which folder its files are.")
    if spec.split is not None:
        keywords.update(_split(spec.split, set(parameters), subject))
    if keywords.pop("download", False):
        raise DataError(f"{subject}: nothing is downloaded here; download it first, with torchvision.")
    try:
        return kind(*positional, **keywords)
    except (RuntimeError, OSError, ValueError, TypeError, ImportError) as error:
        raise DataError(f"{subject}: {' '.join(str(error).split())}") from error


def _split(split: str, parameters: set[str], subject: str) -> dict[str, Any]:
    argument = next((name for name in SPLITS if name in parameters), None)
    if argument is None:
        raise DataError(f"{subject}: this data set has no splits; leave out `split`.")
    if argument not in ("train", "background"):
        return {argument: split}
    if split not in ("train", "test"):
        raise DataError(f"{subject}: `split` must be 'train' or 'test'. Got {split!r}.")
    return {argument: split == "train"}
