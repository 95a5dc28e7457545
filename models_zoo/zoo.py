"""The register of models that the laws run over: small, quick, one of each kind.

>>> from fxfuse.models_zoo.randomise import randomise
>>> entry = ZOO["resnet20"]
>>> model = randomise(entry.factory(), seed=0).eval()
>>> model(*entry.example()).shape
torch.Size([3, 10])
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from fxfuse.models_zoo import odd, sequences, structures
from fxfuse.models_zoo.convnets import ResNet, digits_net, resnet18, resnet20, vgg11_bn
from fxfuse.models_zoo.mlp import OTFusionMLP, mlp, neuron_interpolation_mlp
from fxfuse.models_zoo.vit import ViT


@dataclass(frozen=True, slots=True)
class Input:
    """One input: its shape without the batch; token indices below ``vocabulary`` where that is given."""

    shape: tuple[int, ...]
    vocabulary: int | None = None


def random_inputs(inputs: Sequence[Input], batch: int, seed: int) -> tuple[Tensor, ...]:
    """A batch for each input: standard normal (float32), or uniform token indices (int64)."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, *item.shape) for item in inputs]
    return tuple(
        torch.randn(shape, generator=generator)
        if item.vocabulary is None
        else torch.randint(item.vocabulary, shape, generator=generator)
        for item, shape in zip(inputs, shapes, strict=True)
    )


@dataclass(frozen=True, slots=True)
class ZooEntry:
    """A model of the zoo.

    ``factory()`` makes it, in training mode and at its usual small size. ``widths`` lists values with which
    ``factory(width=...)`` works, the usual one first; it is empty for models of one size. Inputs and outputs do not
    depend on the width.
    """

    factory: Callable[..., nn.Module]
    inputs: tuple[Input, ...]
    widths: tuple[int, ...] = ()

    def example(self, batch: int = 3, seed: int = 0) -> tuple[Tensor, ...]:
        """Random inputs, as :func:`random_inputs` draws them."""
        return random_inputs(self.inputs, batch, seed)


def _mlp(width: int = 12, bias: bool = True) -> nn.Module:
    return mlp((20, width, 2 * width, 7), bias=bias)


def _otfusion(width: int = 24) -> nn.Module:
    return OTFusionMLP((width, width // 2, width // 4))


def _neuron_interpolation(width: int = 24) -> nn.Module:
    return neuron_interpolation_mlp(width)


def _resnet_pad(width: int = 4) -> nn.Module:
    return ResNet((1, 1, 1), width=width, shortcut="pad")


_MNIST = (Input((1, 28, 28)),)
_CIFAR = (Input((3, 32, 32)),)
_IMAGE = (Input((3, 16, 16)),)
_VECTOR = (Input((20,)),)
_TOKENS = (Input((sequences.LENGTH,), vocabulary=sequences.VOCABULARY),)
_FEATURES = (Input((sequences.LENGTH, 10)),)

ZOO: dict[str, ZooEntry] = {
    # what people train
    "mlp": ZooEntry(_mlp, _VECTOR, (12, 8, 17)),
    "mlp_no_bias": ZooEntry(partial(_mlp, bias=False), _VECTOR, (12, 8, 17)),
    "neuron_interpolation_mlp": ZooEntry(_neuron_interpolation, _MNIST, (24, 16, 33)),
    "otfusion_mlp": ZooEntry(_otfusion, _MNIST, (24, 16, 32)),
    "digits_net": ZooEntry(digits_net, (Input((1, 8, 8)),), (16, 8, 12)),
    "vgg11_bn": ZooEntry(partial(vgg11_bn, width=4), _CIFAR, (4, 3, 6)),
    "resnet20": ZooEntry(partial(resnet20, width=4), _CIFAR, (4, 3, 6)),
    "resnet_pad": ZooEntry(_resnet_pad, _CIFAR, (4, 2, 6)),
    "resnet18": ZooEntry(partial(resnet18, width=4), _CIFAR, (4, 3, 6)),
    "vit": ZooEntry(partial(ViT, image=16, width=16, depth=2), _IMAGE, (16, 8, 24)),
    # odd spellings
    "functional_mlp": ZooEntry(odd.FunctionalMLP, _VECTOR, (12, 8, 17)),
    "functional_conv": ZooEntry(odd.FunctionalConvNet, _IMAGE, (8, 6, 9)),
    "in_place": ZooEntry(odd.InPlaceNet, _IMAGE, (8, 6, 10)),
    "maxout": ZooEntry(odd.Maxout, _VECTOR, (6, 4, 9)),
    "einsum": ZooEntry(odd.EinsumNet, _FEATURES, (12, 8, 16)),
    "tied_autoencoder": ZooEntry(odd.TiedAutoencoder, _VECTOR, (12, 8, 17)),
    "shared_layers": ZooEntry(odd.SharedLayers, _VECTOR, (12, 8, 17)),
    "weight_arithmetic": ZooEntry(odd.WeightArithmetic, _IMAGE, (8, 6, 9)),
    "lambda_layers": ZooEntry(odd.lambda_net, _IMAGE, (8, 6, 9)),
    "nested_containers": ZooEntry(odd.NestedContainers, _VECTOR, (12, 8, 17)),
    "constant_branches": ZooEntry(odd.ConstantBranches, _IMAGE, (8, 6, 9)),
    "slices": ZooEntry(odd.SliceNet, _IMAGE, (12, 9, 15)),
    # unusual structure
    "dense": ZooEntry(structures.DenseNet, _IMAGE, (8, 6, 9)),
    "unet": ZooEntry(structures.UNet, _IMAGE, (6, 4, 9)),
    "mobile_se": ZooEntry(structures.MobileNet, _IMAGE, (8, 6, 9)),
    "grouped": ZooEntry(structures.GroupedNet, _IMAGE, (16, 8, 24)),
    "two_inputs": ZooEntry(structures.TwoInputs, (Input((3, 16, 16)), Input((6,))), (10, 8, 13)),
    "two_outputs": ZooEntry(structures.TwoOutputs, _IMAGE, (8, 6, 9)),
    "dict_output": ZooEntry(structures.DictOutput, _VECTOR, (12, 8, 17)),
    "wavenet": ZooEntry(structures.WaveNet, (Input((2, 24)),), (8, 6, 9)),
    "volume": ZooEntry(structures.VolumeNet, (Input((1, 8, 8, 8)),), (6, 4, 9)),
    "pixel_shuffle": ZooEntry(structures.PixelNet, _IMAGE, (8, 6, 9)),
    # tokens
    "lstm": ZooEntry(sequences.LSTMClassifier, _TOKENS, (8, 6, 9)),
    "gru": ZooEntry(sequences.GRUClassifier, _TOKENS, (8, 6, 9)),
    "transformer_encoder": ZooEntry(sequences.TransformerClassifier, _TOKENS, (16, 8, 24)),
    "mixer": ZooEntry(sequences.Mixer, _IMAGE, (12, 8, 17)),
    "packed_qkv": ZooEntry(sequences.PackedQKV, _FEATURES, (12, 9, 18)),
    "language_model": ZooEntry(sequences.LanguageModel, _TOKENS, (12, 8, 18)),
    "convnext": ZooEntry(sequences.ConvNeXt, _IMAGE, (8, 6, 9)),
    "gated_mlp": ZooEntry(sequences.GatedMLP, _VECTOR, (12, 8, 17)),
}
"""All models by name."""
