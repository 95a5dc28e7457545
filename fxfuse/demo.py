"""The demo: three networks that each know a part of the digits well, fused into one of the same size.

scikit-learn's 1,797 handwritten digits are cut into three disjoint parts: training images, 300 calibration images whose
labels are thrown away, and 360 test images. Of every digit's training images one parent gets 80 % and the others 10 %
each, so that each parent is good at three or four digits and poor at the rest, and only all three together are good at
everything. What is fused and how is written as a recipe first; the demo then runs that recipe, as a user would.
"""

import shlex
import textwrap
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import save_file

from fxfuse.console import level_sentences, make_console, say, show_files
from fxfuse.errors import ExportError, OutputError
from fxfuse.models_zoo.convnets import digits_net
from fxfuse.models_zoo.data import Images, class_mix, digits, hold_out
from fxfuse.models_zoo.train import Settings, train
from fxfuse.passes.solvers.threads import one_thread
from fxfuse.progress import Progress, make_progress
from fxfuse.recipe import load_recipe
from fxfuse.report import result_table
from fxfuse.run import RunOutcome, run
from fxfuse.writing import ONNX

TEST, CALIBRATION = 360, 300
OWN = ((0, 1, 2, 3), (4, 5, 6), (7, 8, 9))
"""The digits that each parent sees most of."""
SHARE = 0.8
"""The share of their training images that it gets; the others get equal parts of the rest."""
SETTINGS = Settings(epochs=12, batch=32, rate=0.1, shift=1, flip=False)
MARK = "# Written by `fxfuse demo`."

RECIPE = """{mark} Paths are relative to this file. To fuse networks of your own, change
# `source` to the code that builds yours (module:factory or path/to/net.py:factory), `weights` to their weight files,
# and the data to an image folder, .npz file or data set of yours, with the preprocessing that they were trained with.
parents:
{parents}
calibration:                      # inputs alone: no labels are needed
  source: data/calibration.npz
  preprocessing: &as_trained {{scale: 1/16, mean: {mean}, std: {std}}}
evaluation:                       # only for the comparison
  source: data/test.npz
  preprocessing: *as_trained
method: hungarian-gradient         # see `fxfuse methods`
seed: {seed}
onnx: true
"""


def demo(folder: str | Path = "fxfuse-demo", seed: int = 0, *, quiet: bool = False) -> RunOutcome:
    """Train, fuse, compare, check the ONNX file, and say what to do next; everything lies in ``folder`` then.

    An earlier demo in ``folder`` is replaced. Raises ``OutputError`` if something else lies there.
    """
    folder = Path(folder)
    console = Console(quiet=True) if quiet else make_console()
    _claim(folder)
    # networks as small as these run no faster on two threads, and far slower on a busy machine
    with one_thread(), make_progress("quiet" if quiet else "auto") as progress:
        say(console, "Three small convolutional networks, each trained on unequal parts of 1,137 handwritten digits:")
        test = _prepare(folder, seed, progress, console)
        recipe = load_recipe(folder / "recipe.yaml")
        say(console, "Fusing them into one network of the same size, with 300 other images and no labels ...")
        output = str((folder / "fused").absolute())
        outcome = run(recipe.model_copy(update={"output": output}), overwrite=True, progress=progress)
    if not quiet:
        _show(console, folder, outcome, test)
    return outcome


def _claim(folder: Path) -> None:
    """Make the folder; refuse one that holds anything but an earlier demo."""
    recipe = folder / "recipe.yaml"
    try:
        used = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
        if used and not (recipe.is_file() and recipe.read_text(encoding="utf-8").startswith(MARK)):
            raise OutputError(f"{folder} is in use and is no earlier demo; choose another folder by --out.")
        for name in ("parents", "data"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "recipe.yaml").write_text(f"{MARK}\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror or error}; choose another by --out.") from None


def _prepare(folder: Path, seed: int, progress: Progress, console: Console) -> Images:
    """Train the parents; write them, the data and the recipe. Returns the test images."""
    images = digits()
    rest, held = hold_out(len(images), TEST, seed=1)
    training, calibration = hold_out(len(rest), CALIBRATION, seed=2)
    test, inputs, labels = images.subset(held), images.pixels[rest[calibration]], images.labels[rest[training]]
    spread = (1 - SHARE) / (len(OWN) - 1)
    shares = [[SHARE if digit in own else spread for digit in range(10)] for own in OWN]
    np.savez(folder / "data" / "calibration.npz", inputs=inputs.numpy())
    np.savez(folder / "data" / "test.npz", inputs=test.pixels.numpy(), labels=test.labels.numpy())
    entries = []
    for index, part in enumerate(class_mix(labels, shares, seed=seed)):
        mine = images.subset(rest[training][part])
        name = f"digits-{OWN[index][0]}-to-{OWN[index][-1]}"
        with torch.random.fork_rng(devices=[]), progress.start(SETTINGS.epochs, f"train {name}") as step:
            torch.manual_seed(len(OWN) * seed + index)
            network = digits_net()
            train(network, mine, SETTINGS, len(OWN) * seed + index, report=lambda _, step=step: step.advance())  # type: ignore[misc]  # bound at once
        file = f"parents/{name}.safetensors"
        save_file(network.state_dict(), folder / file)
        entries.append(f"  - {{source: 'fxfuse.models_zoo.convnets:digits_net', weights: {file}, name: {name}}}")
        counts = mine.labels.bincount(minlength=10).tolist()
        say(console, f"  {name}: {len(mine)} images, of the digits 0 to 9: {' '.join(map(str, counts))}")
    text = RECIPE.format(mark=MARK, parents="\n".join(entries), mean=images.mean[0], std=images.std[0], seed=seed)
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    return test


def _show(console: Console, folder: Path, outcome: RunOutcome, test: Images) -> None:
    console.print()
    console.print(result_table(outcome.result))
    say(console, "", "What happened, level by level:")
    for sentence in level_sentences(outcome.result.levels):
        for line in textwrap.wrap(sentence, 112, initial_indent="  ", subsequent_indent="    "):
            say(console, line)
    say(console, "")
    show_files(console, outcome)
    largest, agreeing = onnx_difference(outcome, test)
    say(
        console,
        f"On the {len(test)} test images, {ONNX} in onnxruntime differs from the fused network by at most "
        f"{largest:.2g} and gives the same answer {agreeing} times.",
    )
    say(console, *next_steps(folder))


def onnx_difference(outcome: RunOutcome, test: Images) -> tuple[float, int]:
    """The ONNX file against the fused network on the test images: largest difference, number of equal answers."""
    import onnxruntime as ort

    x = test.normalised()
    with torch.no_grad():
        expected = outcome.result.module(x)
    session = ort.InferenceSession(  # type: ignore[attr-defined]  # exported without saying so
        str(outcome.folder / ONNX), providers=["CPUExecutionProvider"]
    )
    got = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
    if got.shape != expected.shape:
        raise ExportError(f"{ONNX} gives shape {tuple(got.shape)} where the network gives {tuple(expected.shape)}")
    return float((got - expected).abs().max()), int((got.argmax(1) == expected.argmax(1)).sum())


def next_steps(folder: Path) -> list[str]:
    """What to type next; every command works as it stands."""
    recipe, again = shlex.quote(str(folder / "recipe.yaml")), shlex.quote(str(folder / "again"))
    picture = shlex.quote(str(folder / "resnet18.svg"))
    result, onnx = shlex.quote(str(folder / "fused")), shlex.quote(str(folder / "copy.onnx"))
    return [
        "",
        f"The account of this run is {folder / 'fused' / 'report.md'}. What to type next:",
        f"  fxfuse inspect torchvision:resnet18 --input 1,3,224,224 --out {picture}",
        f"  fxfuse fuse {recipe} --method hungarian-linear --out {again}",
        f"  fxfuse eval {result}; fxfuse export {result} --onnx {onnx}",
        f"For networks of your own, copy {recipe}: it says what to change. Or, without a recipe:",
        "  fxfuse fuse --parent net.py:factory --weights a.safetensors --weights b.safetensors \\",
        "      --calibration images/ --out fused",
    ]
