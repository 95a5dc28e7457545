"""Every classification builder of torchvision, its segmentation families, and the backbones of its detectors."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import nn
from torchvision import models
from torchvision.models._api import get_model, list_models

from fxfuse.coverage.entry import Entry
from fxfuse.models_zoo.zoo import Input

SIDE = 64
"""Side of the input images, where a model takes any."""
SIDES = {"inception_v3": 96, "maxvit_t": 224, "ssd300_vgg16": 300, "ssdlite320_mobilenet_v3_large": 320}
FAST = {
    "mobilenet_v2", "mobilenet_v3_small", "squeezenet1_1", "shufflenet_v2_x0_5", "mnasnet0_5", "efficientnet_b0",
    "resnet18", "regnet_y_400mf", "googlenet", "densenet121", "lraspp_mobilenet_v3_large",
}  # fmt: skip
_SEGMENTATION = ("fcn_resnet50", "deeplabv3_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large")
_DETECTION = (
    "fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2", "fasterrcnn_mobilenet_v3_large_fpn",
    "maskrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn", "retinanet_resnet50_fpn", "fcos_resnet50_fpn",
    "ssd300_vgg16", "ssdlite320_mobilenet_v3_large",
)  # fmt: skip


def entries() -> Iterator[Entry]:
    """The rows."""
    for name in list_models(module=models):
        yield _image(name, "torchvision classification", *_options(name))
    for name in _SEGMENTATION:
        options = {"weights_backbone": None, "num_classes": 5}
        yield _image(name, "torchvision segmentation", options, "no pretrained backbone")
    for name in _DETECTION:
        options = {"weights_backbone": None, "num_classes": 5}
        if not name.startswith("ssd"):
            options |= {"min_size": SIDE, "max_size": SIDE}
        yield _image(name, "torchvision detection", options, "its backbone", submodule="backbone")


def _options(name: str) -> tuple[dict[str, Any], str]:
    if name.startswith("vit_"):
        side = 56 if name.endswith("14") else SIDE
        return {"image_size": side}, f"for images of side {side}"
    if name in ("inception_v3", "googlenet"):
        return {"init_weights": False}, ""
    return {}, ""


def _image(name: str, family: str, options: dict[str, Any], note: str, submodule: str | None = None) -> Entry:
    side = SIDES.get(name, options.get("image_size", SIDE))
    build = partial(_build, name, **options)
    return Entry(name, family, build, (Input((3, side, side)),), submodule=submodule, note=note, fast=name in FAST)


def _build(name: str, **options: Any) -> nn.Module:
    model: nn.Module = get_model(name, weights=None, **options)
    return model
