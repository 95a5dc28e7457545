import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fxfuse.models_zoo import data
from fxfuse.models_zoo.convnets import digits_net
from fxfuse.models_zoo.train import (
    RECIPES,
    Settings,
    accuracy,
    augment,
    load_parents,
    main,
    one_cycle,
    probabilities,
    run,
    splits,
    train,
)

QUICK = Settings(epochs=2, batch=32, shift=1, flip=False)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_augmented_images_are_windows_of_the_mirrored_image() -> None:
    pixels = torch.arange(2 * 3 * 6 * 6, dtype=torch.uint8).view(2, 3, 6, 6)
    settings = Settings(epochs=1, shift=2, crop=4, flip=True)
    padded = torch.nn.functional.pad(pixels.float(), (2,) * 4, mode="reflect").to(torch.uint8)
    draw = generator()
    seen = set()
    for _ in range(40):
        for image, source in zip(augment(pixels, settings, draw), padded, strict=True):
            windows = {
                (row, column, flip): source[:, row : row + 4, column : column + 4].flip(-1 if flip else ())
                for row in range(7)
                for column in range(7)
                for flip in (False, True)
            }
            found = [key for key, window in windows.items() if torch.equal(window, image)]
            assert found
            seen.update(found)
    assert len(seen) > 40
    assert {flip for _, _, flip in seen} == {False, True}


def test_no_augmentation_leaves_the_images_alone() -> None:
    pixels = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    assert augment(pixels, Settings(epochs=1, shift=0, flip=False), generator()) is pixels


def test_one_cycle_rises_to_one_and_falls_to_zero() -> None:
    values = [one_cycle(step / 100, 0.25) for step in range(101)]
    assert values[0] == 0
    assert values[25] == 1
    assert values[100] == pytest.approx(0, abs=1e-12)
    assert values[:26] == sorted(values[:26])
    assert values[25:] == sorted(values[25:], reverse=True)


@pytest.mark.parametrize("change", [{"epochs": 0}, {"epochs": 1, "warmup": 0.0}, {"epochs": 1, "rate": -1.0}])
def test_settings_are_checked(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="epochs must be"):
        Settings(**change)  # type: ignore[arg-type]


def test_training_repeats_bit_by_bit_and_leaves_the_random_state() -> None:
    images = data.digits().subset(torch.arange(256))
    states = []
    for _ in range(2):
        torch.manual_seed(0)
        model = digits_net(4)
        before = torch.get_rng_state()
        train(model, images, QUICK, seed=7)
        assert torch.equal(torch.get_rng_state(), before)
        assert not model.training
        assert all(p.is_contiguous() for p in model.parameters())
        states.append(model.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_the_first_epochs_may_see_half_the_size() -> None:
    sides: list[int] = []
    model = digits_net(4)
    model.register_forward_pre_hook(lambda _, inputs: sides.append(inputs[0].shape[-1]))
    settings = Settings(epochs=3, batch=32, shift=0, flip=False, half=2)
    train(model, data.digits().subset(torch.arange(64)), settings)
    assert sides == [4, 4, 4, 4, 8, 8]


def test_training_learns() -> None:
    torch.manual_seed(0)
    model = digits_net(8)
    images = data.digits()
    kept, held = data.hold_out(len(images), 300)
    lines: list[str] = []
    train(model, images.subset(kept), Settings(epochs=4, batch=32, shift=1, flip=False), report=lines.append)
    assert accuracy(probabilities(model, images.subset(held)), images.labels[held]) > 0.95
    assert [line.partition(":")[0] for line in lines] == [f"epoch {i}/4" for i in range(1, 5)]


def test_splits_are_disjoint_and_the_validation_part_is_the_same_for_every_seed() -> None:
    first, second = splits(RECIPES["digits"], 0), splits(RECIPES["digits"], 1)
    assert torch.equal(first.held, second.held)
    used = torch.cat([*first.indices, first.held])
    assert len(used) == len(set(used.tolist())) == 1797 - len(first.test)
    assert not torch.equal(first.indices[0][:50], second.indices[0][:50])


def test_a_run_writes_what_load_parents_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, "digits", replace(RECIPES["digits"], parents=2, settings=QUICK))
    lines: list[str] = []
    summary = run("digits", tmp_path, seed=3, report=lines.append)
    assert json.loads((tmp_path / "digits-seed3.json").read_text()) == json.loads(json.dumps(summary))
    parents = load_parents(tmp_path, "digits", seed=3)
    cut = splits(RECIPES["digits"], 3)
    rows = summary["parents"]
    assert isinstance(rows, list)
    for index, (parent, row) in enumerate(zip(parents, rows, strict=True)):
        assert accuracy(probabilities(parent, cut.test), cut.test.labels) == row["test"]
        assert set(load_file(tmp_path / f"digits-seed3-parent{index}.safetensors")) == set(parent.state_dict())
    with pytest.raises(FileNotFoundError, match="train it with"):
        load_parents(tmp_path, "digits", seed=4)


def test_the_command_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["mnist-mlp", "--data", str(tmp_path), "--out", str(tmp_path / "out")])
    assert stop.value.code == 2
    assert "train-images-idx3-ubyte.gz is missing" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_builds_its_network(name: str) -> None:
    recipe = RECIPES[name]
    shape = {"cifar10": (2, 3, 32, 32), "mnist": (2, 1, 28, 28), "digits": (2, 1, 8, 8)}[recipe.dataset]
    assert recipe.build().eval()(torch.zeros(shape)).shape == (2, 10)
