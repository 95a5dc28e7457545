"""Training recipes: parents on unequal class mixes, from a fixed seed.

    python -m fxfuse.models_zoo.train cifar10-vgg-narrow --data FOLDER --out FOLDER --seed 0

The training images are cut into a validation part that no parent sees (always the same one, whatever the seed) and one
Dirichlet class mix per parent. Each parent minimises cross entropy with smoothed labels on flipped and shifted images;
the learning rate rises linearly to its peak and falls to zero along a cosine. On a CPU the same seed and number of
threads give the same bits.
"""

import argparse
import importlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fxfuse.models_zoo import data
from fxfuse.models_zoo.data import Images

Dataset = Literal["cifar10", "mnist", "digits"]
Report = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How one network is trained.

    ``rate`` is the peak learning rate, reached after the share ``warmup`` of all steps. ``shift`` is the largest shift
    in pixels (the border is mirrored), ``crop`` the side of the square that training sees (whole image if ``None``; the
    rest of the shift range is used too), ``flip`` mirrors half of the images. The first ``half`` epochs see images of
    half the side (means of 2x2 pixels), a quarter of the work, for networks that take any size.
    """

    epochs: int
    batch: int = 64
    optimizer: Literal["sgd", "adamw"] = "sgd"
    rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    smoothing: float = 0.05
    warmup: float = 0.25
    shift: int = 4
    crop: int | None = None
    flip: bool = True
    half: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 2 or not 0 < self.warmup < 1 or not self.rate > 0:
            raise ValueError(f"epochs must be >= 1, batch >= 2, 0 < warmup < 1, rate > 0. Got {self}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Several parents of one architecture on unequal class mixes of one data set.

    ``model`` is ``module:factory``, called with ``arguments``; ``alpha`` the Dirichlet concentration of the class
    mixes; ``validation`` the number of training images that no parent sees.
    """

    model: str
    settings: Settings
    dataset: Dataset = "cifar10"
    arguments: Mapping[str, int] = field(default_factory=dict)
    parents: int = 2
    alpha: float = 0.5  # at the peers' 1 to 5 the ensemble of such short-trained parents hardly beats the better one
    validation: int = 5000
    device: str = "cpu"

    def build(self) -> nn.Module:
        """The untrained network, initialised from torch's current random state."""
        module, _, factory = self.model.partition(":")
        model = getattr(importlib.import_module(module), factory)(**self.arguments)
        assert isinstance(model, nn.Module)
        return model


_CONVNETS = "fxfuse.models_zoo.convnets"
_VIT = Settings(epochs=6, optimizer="adamw", rate=2e-3, weight_decay=0.02)
_GPU = Settings(epochs=60, batch=256, rate=0.2)
_GPU_VIT = Settings(epochs=200, batch=256, optimizer="adamw", rate=1e-3, weight_decay=0.05, smoothing=0.1, warmup=0.1)

RECIPES: dict[str, Recipe] = {
    # each parent takes minutes on one CPU core
    "cifar10-vgg-narrow": Recipe(
        model=f"{_CONVNETS}:vgg11_bn", arguments={"width": 16}, settings=Settings(epochs=8, rate=0.05)
    ),
    "cifar10-resnet-narrow": Recipe(
        model=f"{_CONVNETS}:resnet20", arguments={"width": 16}, settings=Settings(epochs=9, half=7)
    ),
    "cifar10-vit-small": Recipe(model="fxfuse.models_zoo.vit:vit_small", settings=_VIT),
    # the usual sizes, for a GPU
    "cifar10-vgg11": Recipe(model=f"{_CONVNETS}:vgg11_bn", settings=_GPU, device="cuda"),
    "cifar10-resnet18": Recipe(model=f"{_CONVNETS}:resnet18", settings=_GPU, device="cuda"),
    "cifar10-vit": Recipe(model="fxfuse.models_zoo.vit:vit_cifar", settings=_GPU_VIT, device="cuda"),
    # seconds
    "mnist-mlp": Recipe(
        model="fxfuse.models_zoo.mlp:neuron_interpolation_mlp",
        dataset="mnist",
        settings=Settings(epochs=3, batch=128, shift=0, flip=False),
    ),
    "digits": Recipe(
        model=f"{_CONVNETS}:digits_net",
        dataset="digits",
        parents=3,
        validation=300,
        settings=Settings(epochs=12, batch=32, rate=0.1, shift=1, flip=False),
    ),
}
"""All recipes by name."""


# --------------------------------------------------------------------------------------------- training


def train(
    model: nn.Module,
    images: Images,
    settings: Settings,
    seed: int = 0,
    device: str | torch.device = "cpu",
    report: Report | None = None,
) -> float:
    """Train ``model`` in place on all of ``images``; it ends on the CPU in evaluation mode. Returns the last loss.

    Global random state is left as it was. ``report`` gets one line per epoch.
    """
    device = torch.device(device)
    model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]  # stubs lack this form
    optimizer = _optimizer(model, settings)
    per_epoch = max(1, len(images) // settings.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: one_cycle((step + 1) / (per_epoch * settings.epochs + 1), settings.warmup)
    )
    generator = torch.Generator().manual_seed(seed)
    pixels, labels = images.pixels.to(device), images.labels.to(device)
    mean_loss = math.nan
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)  # for dropout
        for epoch in range(settings.epochs):
            total = torch.zeros((), device=device)
            order = torch.randperm(len(images), generator=generator)[: per_epoch * settings.batch]
            for chunk in torch.split(order, settings.batch):
                indices = chunk.to(device)
                x = images.normalise(augment(pixels[indices], settings, generator))
                x = F.avg_pool2d(x, 2) if epoch < settings.half else x
                x = x.contiguous(memory_format=torch.channels_last)
                with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                    loss = F.cross_entropy(model(x), labels[indices], label_smoothing=settings.smoothing)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                total += loss.detach()
            mean_loss = float(total) / per_epoch
            if report is not None:
                report(f"epoch {epoch + 1}/{settings.epochs}: loss {mean_loss:.3f}")
    model.to("cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    return mean_loss


def one_cycle(progress: float, warmup: float) -> float:
    """Learning rate relative to its peak at ``progress`` in (0, 1): linear up to ``warmup``, then a cosine to zero."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def augment(pixels: Tensor, settings: Settings, generator: torch.Generator) -> Tensor:
    """Randomly shifted, cropped and flipped images (samples x channels x side x side), each in its own way.

    Drawn on the CPU from ``generator``, so that every device sees the same images. Keeps the type.
    """
    count, _, height, width = pixels.shape
    tall, wide = settings.crop or height, settings.crop or width
    shift = settings.shift
    if shift == 0 and settings.crop is None and not settings.flip:
        return pixels
    padded = F.pad(pixels.float(), (shift,) * 4, mode="reflect").to(pixels.dtype) if shift else pixels
    rows = torch.randint(height + 2 * shift - tall + 1, (count, 1), generator=generator) + torch.arange(tall)
    columns = torch.randint(width + 2 * shift - wide + 1, (count, 1), generator=generator) + torch.arange(wide)
    if settings.flip:
        flipped = torch.rand(count, 1, generator=generator) < 0.5
        columns = torch.where(flipped, columns.flip(1), columns)
    rows, columns = rows.to(pixels.device), columns.to(pixels.device)
    sample = torch.arange(count, device=pixels.device)
    # advanced indices around a slice come first in the result: samples x rows x columns x channels
    return padded[sample[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """Weight decay on matrices and kernels only, not on norms, biases, tokens and positions."""
    decayed = [p for p in model.parameters() if p.dim() > 1 and p.shape[0] > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1 or p.shape[0] == 1]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.rate)
    return torch.optim.SGD(groups, lr=settings.rate, momentum=settings.momentum, nesterov=settings.momentum > 0)


@torch.no_grad()
def probabilities(model: nn.Module, images: Images, device: str | torch.device = "cpu", batch: int = 500) -> Tensor:
    """Predicted class probabilities (samples x classes), on the CPU."""
    model.to(device).eval()
    chunks = [
        model(images.normalise(pixels.to(device))).softmax(1).cpu() for pixels in torch.split(images.pixels, batch)
    ]
    return torch.cat(chunks)


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Share of samples whose largest probability (samples x classes) is at the label."""
    return float((predicted.argmax(1) == labels).float().mean())


# --------------------------------------------------------------------------------------------- recipes


@dataclass(frozen=True, slots=True)
class Splits:
    """Who sees what: one set of training images per parent, the validation and the test images."""

    parents: tuple[Images, ...]
    indices: tuple[Tensor, ...]
    validation: Images
    held: Tensor
    test: Images


def splits(recipe: Recipe, seed: int, root: str | Path | None = None, cache: str | Path | None = None) -> Splits:
    """The images of ``recipe``. ``indices`` and ``held`` count in the original training images."""
    if recipe.dataset == "cifar10":
        images, test = data.cifar10(root, True, cache), data.cifar10(root, False, cache)
    elif recipe.dataset == "mnist":
        images, test = data.mnist(root, True), data.mnist(root, False)
    else:  # scikit-learn's digits come without a test part: make one
        kept, last = data.hold_out(len(data.digits()), 360, seed=1)
        images, test = data.digits().subset(kept), data.digits().subset(last)
    kept, held = data.hold_out(len(images), recipe.validation)
    mixes = data.dirichlet_split(images.labels[kept], recipe.parents, recipe.alpha, seed)
    indices = tuple(kept[mix] for mix in mixes)
    return Splits(tuple(images.subset(i) for i in indices), indices, images.subset(held), held, test)


def run(
    name: str,
    out: str | Path,
    *,
    root: str | Path | None = None,
    seed: int = 0,
    device: str | None = None,
    cache: str | Path | None = None,
    report: Report = print,
) -> dict[str, object]:
    """Train all parents of a recipe and write them to the folder ``out``; returns what the JSON file says.

    Writes ``NAME-seedS-parentP.safetensors``, ``NAME-seedS-indices.npz`` (training images of each parent, validation
    images) and ``NAME-seedS.json`` (recipe, accuracies, class counts, seconds).
    """
    recipe = RECIPES[name]
    device = device or recipe.device
    cut = splits(recipe, seed, root, cache)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{name}-seed{seed}"
    arrays = {f"parent{p}": i.numpy() for p, i in enumerate(cut.indices)}
    np.savez(folder / f"{stem}-indices.npz", validation=cut.held.numpy(), **arrays)  # type: ignore[arg-type]
    rows: list[dict[str, object]] = []
    predicted: list[tuple[Tensor, Tensor]] = []
    for index, images in enumerate(cut.parents):
        start, own = time.perf_counter(), seed * recipe.parents + index
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(own)
            model = recipe.build()
        loss = train(model, images, recipe.settings, own, device, partial(_forward, report, index))
        seconds = time.perf_counter() - start
        scores = (probabilities(model, cut.validation, device), probabilities(model, cut.test, device))
        predicted.append(scores)
        model.cpu()
        save_file(model.state_dict(), folder / f"{stem}-parent{index}.safetensors")
        row = _scores(scores, cut) | {"loss": loss, "seconds": seconds, "images": len(images)}
        rows.append(row | {"class_counts": images.labels.bincount(minlength=len(images.classes)).tolist()})
        report(f"parent {index}: validation {row['validation']:.4f}, test {row['test']:.4f}, {seconds:.0f} s")
    mean = (torch.stack([v for v, _ in predicted]).mean(0), torch.stack([t for _, t in predicted]).mean(0))
    summary = _summary(name, seed, device) | {"parents": rows, "ensemble_of_probabilities": _scores(mean, cut)}
    (folder / f"{stem}.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def _forward(report: Report, index: int, line: str) -> None:
    report(f"parent {index}, {line}")


def _scores(predicted: tuple[Tensor, Tensor], cut: Splits) -> dict[str, object]:
    return {
        "validation": accuracy(predicted[0], cut.validation.labels),
        "test": accuracy(predicted[1], cut.test.labels),
    }


def _summary(name: str, seed: int, device: str) -> dict[str, object]:
    return {
        "recipe": name,
        "settings": asdict(RECIPES[name]),
        "seed": seed,
        "device": device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def load_parents(folder: str | Path, name: str, seed: int = 0) -> list[nn.Module]:
    """The trained parents that :func:`run` wrote, in evaluation mode."""
    parents = []
    for index in range(RECIPES[name].parents):
        path = Path(folder) / f"{name}-seed{seed}-parent{index}.safetensors"
        if not path.is_file():
            command = f"python -m fxfuse.models_zoo.train {name} --seed {seed} --out {folder}"
            raise FileNotFoundError(f"{path} is missing: train it with `{command}`")
        model = RECIPES[name].build()
        model.load_state_dict(load_file(path))
        parents.append(model.eval())
    return parents


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m fxfuse.models_zoo.train", description="Train a recipe's parents.")
    parser.add_argument("recipe", choices=sorted(RECIPES))
    parser.add_argument("--data", help="folder with the data set's files (default: FXFUSE_DATA)")
    parser.add_argument("--out", required=True, help="folder for weights and accuracies")
    parser.add_argument("--cache", help="folder for decoded images (default: the user's cache folder)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: the recipe's)")
    chosen = parser.parse_args(arguments)
    try:
        run(chosen.recipe, chosen.out, root=chosen.data, seed=chosen.seed, device=chosen.device, cache=chosen.cache)
    except FileNotFoundError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
