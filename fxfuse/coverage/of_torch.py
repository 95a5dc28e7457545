"""Networks of plain torch: transformers, recurrent ones, every model of the zoo, narrow ones of large families."""

from collections.abc import Iterator
from functools import partial

import torchvision
from torch import Tensor, nn

from fxfuse.coverage.entry import Entry
from fxfuse.models_zoo.zoo import ZOO, Input

_WIDTH, _LENGTH, _VOCABULARY = 16, 10, 30
_TOKENS = Input((_LENGTH,), vocabulary=_VOCABULARY)
_FEATURES = Input((_LENGTH, _WIDTH))
_IMAGE = Input((3, 32, 32))


class Translator(nn.Module):
    """``nn.Transformer`` from tokens to tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.source = nn.Embedding(_VOCABULARY, _WIDTH)
        self.target = nn.Embedding(_VOCABULARY, _WIDTH)
        self.transformer = nn.Transformer(_WIDTH, 4, 2, 2, 24, batch_first=True)
        self.head = nn.Linear(_WIDTH, _VOCABULARY)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Logits per target position."""
        hidden: Tensor = self.transformer(self.source(source), self.target(target))
        logits: Tensor = self.head(hidden)
        return logits


class DecoderNet(nn.Module):
    """``nn.TransformerDecoder`` that reads features."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(_WIDTH, 4, 24, batch_first=True, norm_first=True, activation="gelu")
        self.inputs = nn.Linear(_WIDTH, _WIDTH)
        self.memory = nn.Linear(_WIDTH, _WIDTH)
        self.decoder = nn.TransformerDecoder(layer, 2, nn.LayerNorm(_WIDTH))
        self.head = nn.Linear(_WIDTH, 5)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """One answer per sample."""
        answer: Tensor = self.head(self.decoder(self.inputs(x), self.memory(memory)).mean(1))
        return answer


class EncoderNet(nn.Module):
    """``nn.TransformerEncoder``, sequence first."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(_WIDTH, 4, 24)
        self.inputs = nn.Linear(_WIDTH, _WIDTH)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(_WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        """One answer per sample."""
        answer: Tensor = self.head(self.encoder(self.inputs(x).transpose(0, 1))[0])
        return answer


class RecurrentNet(nn.Module):
    """A recurrent layer of any kind, read at its last step."""

    def __init__(self, recurrent: nn.RNNBase, features: int) -> None:
        super().__init__()
        self.recurrent = recurrent
        self.head = nn.Linear(features, 5)

    def forward(self, x: Tensor) -> Tensor:
        """One answer per sample."""
        answer: Tensor = self.head(self.recurrent(x)[0][:, -1])
        return answer


def _lstm() -> nn.Module:
    return RecurrentNet(nn.LSTM(_WIDTH, 12, num_layers=2, bidirectional=True, batch_first=True), 24)


def _projected() -> nn.Module:
    return RecurrentNet(nn.LSTM(_WIDTH, 12, proj_size=6, batch_first=True), 6)


def _gru() -> nn.Module:
    return RecurrentNet(nn.GRU(_WIDTH, 12, num_layers=2, batch_first=True), 12)


def _vgg() -> nn.Module:
    net = torchvision.models.VGG(torchvision.models.vgg.make_layers([8, "M", 16, "M"], batch_norm=True), num_classes=10)
    net.classifier[0] = nn.Linear(16 * 7 * 7, 32)
    net.classifier[3], net.classifier[6] = nn.Linear(32, 32), nn.Linear(32, 10)
    return net


def _vit() -> nn.Module:
    return torchvision.models.VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=10)


def _swin() -> nn.Module:
    return torchvision.models.SwinTransformer([2, 2], 16, [2, 2], [2, 4], [4, 4], num_classes=10)


def _swin_v2() -> nn.Module:
    swin = torchvision.models.swin_transformer
    return torchvision.models.SwinTransformer(
        [2, 2], 16, [2, 2], [2, 4], [4, 4], num_classes=10,
        block=swin.SwinTransformerBlockV2, downsample_layer=swin.PatchMergingV2,
    )  # fmt: skip


def _maxvit() -> nn.Module:
    return torchvision.models.MaxVit((56, 56), 16, 7, [16, 32], [1, 1], 8, 0.1, num_classes=10)


def _convnext() -> nn.Module:
    setting = torchvision.models.convnext.CNBlockConfig
    return torchvision.models.ConvNeXt([setting(16, 24, 2), setting(24, None, 2)], num_classes=10)


def entries() -> Iterator[Entry]:
    """The rows."""
    plain = (
        ("nn.Transformer", Translator, (_TOKENS, _TOKENS)),
        ("nn.TransformerEncoder", EncoderNet, (_FEATURES,)),
        ("nn.TransformerDecoder", DecoderNet, (_FEATURES, _FEATURES)),
        ("nn.LSTM, two layers, both directions", _lstm, (_FEATURES,)),
        ("nn.LSTM, projected", _projected, (_FEATURES,)),
        ("nn.GRU, two layers", _gru, (_FEATURES,)),
    )
    for name, build, taken in plain:
        yield Entry(name, "torch", build, taken, fast=True)
    narrow = {"VGG": _vgg, "ViT": _vit, "Swin": _swin, "Swin v2": _swin_v2, "MaxViT": _maxvit, "ConvNeXt": _convnext}
    for name, factory in narrow.items():
        taken = (Input((3, 56, 56)) if name == "MaxViT" else _IMAGE,)
        yield Entry(f"{name}, narrow", "torchvision narrow", factory, taken, note="torchvision's class", fast=True)
    for name, item in ZOO.items():
        yield Entry(f"zoo:{name}", "zoo", partial(_zoo, name), item.inputs, fast=True)


def _zoo(name: str) -> nn.Module:
    return ZOO[name].factory()
