"""Preprocessing of inputs, as ``fxfuse.recipe.Preprocessing`` states it.

For a decoded or raw value ``x``: geometry first (permute, colour, resize, crop), sample by sample where sizes differ;
then, on batches, ``y = (x * scale - mean) / std`` in float32, and flatten.
"""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as tv

from fxfuse.errors import DataError
from fxfuse.recipe import Preprocessing

PLAIN_MODES = ("L", "RGB", "I", "I;16", "F")
"""Colour modes of decoded images that are taken as they are; others (palettes, transparency) become RGB."""


class Transform:
    """Preprocessing, applied to samples and batches.

    ``narrow`` says that wider or shorter floats become float32 too: right for numpy, whose default is float64, while
    the type of a torch tensor is its owner's choice.
    """

    def __init__(self, preprocessing: Preprocessing, narrow: bool = False) -> None:
        self.preprocessing = preprocessing
        self.narrow = narrow

    def sample(self, value: Any) -> Tensor:
        """One sample, an image or an array, as a tensor with its geometry settled but its values as they were."""
        if isinstance(value, Image.Image):
            return self._image(value)
        x = as_tensor(value)
        if x.dtype == torch.float64 and not isinstance(value, Tensor) and self.preprocessing.to_float is not False:
            x = x.to(torch.float32)
        return self._geometry(x[None])[0] if touches(x) else x

    def raw_batch(self, x: Tensor) -> Tensor:
        """A batch with its geometry settled but its values as they were."""
        return self._geometry(x) if touches(x) else x

    def values(self, x: Tensor) -> Tensor:
        """A batch with its values settled: float, scaled, standardised, flattened."""
        p = self.preprocessing
        if not (touches(x) or p.to_float):
            return x
        if p.to_float is not False:
            x = self._float(x)
        if p.flatten:
            x = x.flatten(1)
        return x

    def _float(self, x: Tensor) -> Tensor:
        p = self.preprocessing
        eight_bit = x.dtype == torch.uint8
        if eight_bit or p.to_float or self.narrow:
            x = x.to(torch.float32)
        if p.scale is not None:
            x = x * p.scale
        elif eight_bit:
            x = x / 255
        if p.mean is not None:
            x = x - _per_channel(p.mean, x, "mean")
        if p.std is not None:
            x = x / _per_channel(p.std, x, "std")
        return x

    def _image(self, image: Image.Image) -> Tensor:
        p = self.preprocessing
        mode = {"grayscale": "L", "rgb": "RGB", None: image.mode if image.mode in PLAIN_MODES else "RGB"}[p.channels]
        if image.mode != mode:
            image = eight_bit(image).convert(mode)
        shaped: Any = image  # torchvision's functions take images as well as tensors, but are typed for tensors
        if p.resize is not None:
            shaped = tv.resize(shaped, list(p.resize), antialias=True)
        if p.center_crop is not None:
            shaped = tv.center_crop(shaped, _pair(p.center_crop))
        x = tv.pil_to_tensor(shaped)
        x = x if x.dtype == torch.uint8 else x.to(torch.float32)
        return x if p.permute is None else _permute(x[None], p.permute)[0]

    def _geometry(self, x: Tensor) -> Tensor:
        p = self.preprocessing
        if p.permute is not None:
            x = _permute(x, p.permute)
        if p.channels is not None:
            x = _colour(x, p.channels)
        if (p.resize is not None or p.center_crop is not None) and x.ndim < 3:
            raise DataError(f"Samples of shape {tuple(x.shape[1:])} cannot be resized or cropped; they are no images.")
        if p.resize is not None:
            x = tv.resize(x, list(p.resize), antialias=True)
        if p.center_crop is not None:
            x = tv.center_crop(x, _pair(p.center_crop))
        return x


def eight_bit(image: Image.Image) -> Image.Image:
    """An image of 16 bits as one of 8 bits, its full range kept: PIL alone would cut off what is above 255.

    Raises ``DataError`` for grey images of 32 bits, whose range is not known.
    """
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image).astype(np.uint32) * 255 // 65535).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise DataError(
            f"images of mode {image.mode!r} hold 32-bit values, whose range is not known; give them as arrays (.npz)."
        )
    return image


def as_tensor(value: Any) -> Tensor:
    """An array-like value as a tensor that shares its memory where it can."""
    if isinstance(value, Tensor):
        return value.detach()
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise DataError(f"A value of type {type(value).__name__} ({array.dtype}) cannot be made a tensor.")
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)  # torch computes little with wide unsigned integers
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    return torch.from_numpy(array) if array.ndim else torch.tensor(array.item())


def touches(x: Tensor) -> bool:
    """Whether preprocessing applies to a tensor: to bytes and floats, not to indices and masks."""
    return x.dtype == torch.uint8 or x.is_floating_point()


def _permute(x: Tensor, order: tuple[int, ...]) -> Tensor:
    if sorted(order) != list(range(x.ndim - 1)):
        raise DataError(f"`permute` {list(order)} does not fit samples of shape {tuple(x.shape[1:])}.")
    return x.permute(0, *(d + 1 for d in order))


def _colour(x: Tensor, channels: str) -> Tensor:
    """Batches of images to 1 or 3 channels; images without a channel dimension are grey."""
    if x.ndim == 3:
        x = x[:, None]
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise DataError(f"`channels: {channels}` needs samples of 1 or 3 channels. Got shape {tuple(x.shape[1:])}.")
    if channels == "rgb":
        return x.expand(-1, 3, -1, -1)
    return x if x.shape[1] == 1 else tv.rgb_to_grayscale(x)


def _pair(extent: tuple[int, ...]) -> list[int]:
    return [extent[0], extent[-1]]


def _per_channel(numbers: tuple[float, ...], x: Tensor, what: str) -> Tensor:
    if len(numbers) > 1 and (x.ndim < 2 or x.shape[1] != len(numbers)):
        channels = x.shape[1] if x.ndim > 1 else 0
        raise DataError(f"`{what}` has {len(numbers)} numbers, but the samples have {channels} channels.")
    return torch.tensor(numbers, dtype=x.dtype).reshape(-1, *[1] * max(x.ndim - 2, 0))
