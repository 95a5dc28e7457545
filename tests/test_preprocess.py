from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from fxfuse.errors import DataError
from fxfuse.preprocess import Transform, as_tensor
from fxfuse.recipe import Preprocessing


def batch(x: torch.Tensor, narrow: bool = False, **settings: Any) -> torch.Tensor:
    transform = Transform(Preprocessing(**settings), narrow)
    return transform.values(transform.raw_batch(x))


def image(mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def test_images_come_out_as_torchvision_makes_them() -> None:
    reference = transforms.Compose(
        [
            transforms.Resize(24),
            transforms.CenterCrop(20),
            transforms.ToTensor(),
            transforms.Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)),
        ]
    )
    p = Preprocessing(resize=24, center_crop=20, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    transform = Transform(p)
    found = transform.values(transform.sample(image())[None])[0]
    assert torch.equal(found, reference(image()))


def test_the_algebra_is_scale_mean_std() -> None:
    x = torch.randint(0, 256, (4, 3, 5, 5), dtype=torch.uint8)
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, 2.0, 3.0])
    expected = (x / 255 - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(batch(x, mean=mean.tolist(), std=std.tolist()), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(batch(x, scale="1/16", mean=0.5), x / 16 - 0.5, rtol=1e-6, atol=1e-6)
    assert batch(x, flatten=True).shape == (4, 75)


@pytest.mark.parametrize(
    ("dtype", "narrow", "settings", "expected"),
    [
        (torch.uint8, False, {}, torch.float32),
        (torch.uint8, False, {"to_float": False}, torch.uint8),
        (torch.float64, False, {}, torch.float64),
        (torch.float64, True, {}, torch.float32),
        (torch.float16, False, {"to_float": True}, torch.float32),
        (torch.int64, True, {}, torch.int64),
        (torch.int64, False, {"to_float": True}, torch.float32),
        (torch.bool, True, {}, torch.bool),
    ],
)
def test_only_bytes_and_floats_are_touched(
    dtype: torch.dtype, narrow: bool, settings: dict[str, Any], expected: torch.dtype
) -> None:
    assert batch(torch.ones(2, 3).to(dtype), narrow, **settings).dtype == expected


def test_bytes_are_scaled_and_indices_are_not() -> None:
    assert torch.equal(batch(torch.full((1, 2), 255, dtype=torch.uint8)), torch.ones(1, 2))
    ids = torch.tensor([[5, 7]])
    assert torch.equal(batch(ids, mean=3, resize=4, permute=[1, 0]), ids)


def test_geometry_of_tensors() -> None:
    x = torch.rand(2, 8, 6, 3)
    y = batch(x, permute=[2, 0, 1], resize=[4, 4], center_crop=2)
    assert y.shape == (2, 3, 2, 2)
    assert batch(x.permute(0, 3, 1, 2), channels="grayscale").shape == (2, 1, 8, 6)
    assert batch(torch.rand(2, 8, 6), channels="rgb").shape == (2, 3, 8, 6)
    assert batch(torch.rand(2, 8, 6), channels="grayscale").shape == (2, 1, 8, 6)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("P", 3), ("RGBA", 3), ("CMYK", 3), ("1", 3)])
def test_images_keep_grey_or_become_rgb(mode: str, channels: int) -> None:
    assert Transform(Preprocessing()).sample(image(mode)).shape == (channels, 30, 40)
    assert Transform(Preprocessing(channels="grayscale")).sample(image(mode)).shape == (1, 30, 40)
    assert Transform(Preprocessing(channels="rgb")).sample(image(mode)).shape == (3, 30, 40)


@pytest.mark.parametrize(
    ("shape", "settings", "expected"),
    [
        ((2, 3, 4, 4), {"mean": (0.1, 0.2)}, "`mean` has 2 numbers, but the samples have 3 channels"),
        ((2, 3), {"std": (1, 2)}, "`std` has 2 numbers, but the samples have 3 channels"),
        ((2, 3, 4), {"permute": [2, 0, 1]}, "`permute` [2, 0, 1] does not fit samples of shape (3, 4)"),
        ((2, 5, 4, 4), {"channels": "rgb"}, "needs samples of 1 or 3 channels. Got shape (5, 4, 4)"),
        ((2, 5), {"resize": 4}, "Samples of shape (5,) cannot be resized or cropped"),
    ],
)
def test_settings_that_do_not_fit_the_data(shape: tuple[int, ...], settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(DataError) as caught:
        batch(torch.rand(shape), **settings)
    assert expected in str(caught.value)


def test_arrays_of_any_number_type_become_tensors() -> None:
    assert as_tensor(np.array([1, 2], dtype=np.uint16)).dtype == torch.int64
    assert torch.equal(as_tensor(np.array([1.0, 2.0], dtype=">f4")), torch.tensor([1.0, 2.0]))
    assert torch.equal(as_tensor(np.arange(3)[::-1]), torch.tensor([2, 1, 0]))
    assert as_tensor(np.int32(3)).ndim == 0
    with pytest.raises(DataError, match="cannot be made a tensor"):
        as_tensor(["a"])
