"""A class has one number, whichever of its folders are there."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fxfuse.data import class_names, samples_from
from fxfuse.data_checks import check
from fxfuse.errors import DataError
from fxfuse.numbering import check_named, numbered_alike
from fxfuse.samples import Samples


def folder(root: Path, *classes: str) -> Samples:
    for name in classes:
        (root / name).mkdir(parents=True)
        for k in range(3):
            Image.new("L", (4, 4), 10 * k).save(root / name / f"{k}.png")
    return samples_from(root)


def labels(samples: Samples | None) -> list[int]:
    assert samples is not None
    found = samples.take(torch.arange(len(samples)))[1]
    assert found is not None
    return found.tolist()


def test_a_folder_that_lacks_a_class_takes_the_other_ones_numbers(tmp_path: Path) -> None:
    whole, part = folder(tmp_path / "whole", "cat", "dog", "owl"), folder(tmp_path / "part", "dog", "owl")
    fitted, judged = numbered_alike(whole, part)
    assert fitted is whole
    assert labels(judged) == [1, 1, 1, 2, 2, 2]
    assert class_names(judged) == ("cat", "dog", "owl")  # type: ignore[arg-type]
    fitted, judged = numbered_alike(part, whole)
    assert judged is whole
    assert labels(fitted) == [1, 1, 1, 2, 2, 2]
    assert numbered_alike(fitted, judged) == (fitted, judged)
    with pytest.raises(DataError, match=r"other classes: dog, owl and cat, fox\. If they are the same"):
        numbered_alike(part, folder(tmp_path / "third", "cat", "fox"))


def test_nothing_is_renumbered_without_labels_or_names(tmp_path: Path) -> None:
    part = folder(tmp_path / "part", "dog", "owl")
    arrays = samples_from((torch.zeros(4, 1), torch.tensor([0, 1, 1, 0])))
    bare = samples_from(tmp_path / "part", labels=False)
    for pair in ((part, arrays), (arrays, part), (bare, part), (part, None), (None, part)):
        assert numbered_alike(*pair) == pair


def test_a_folder_with_fewer_classes_than_the_model_is_refused(tmp_path: Path) -> None:
    part = folder(tmp_path / "part", "dog", "owl")
    with pytest.raises(DataError, match=r"has folders of 2 classes, dog, owl, and the model 3 classes"):
        check_named(part, 3, "evaluation data")
    check_named(part, 2, "evaluation data")
    check_named(samples_from(tmp_path / "part", labels=False), 3, "evaluation data")
    check_named(numbered_alike(folder(tmp_path / "all", "cat", "dog", "owl"), part)[1] or part, 3, "evaluation data")
    check_named(samples_from((torch.zeros(2, 1), torch.tensor([0, 1]))), 3, "evaluation data")


def test_a_limit_reaches_all_classes_of_a_folder(tmp_path: Path) -> None:
    folder(tmp_path / "all", "cat", "dog", "owl")
    assert sorted(labels(samples_from(tmp_path / "all", limit=3))) == [0, 1, 2]
    assert len(samples_from(tmp_path / "all", limit=3, labels=False)) == 3
    mixed = samples_from((torch.arange(6.0)[:, None], torch.tensor([2, 0, 1, 2, 2, 2])), limit=3)
    assert mixed.take(torch.arange(3))[0][0].flatten().tolist() == [0.0, 1.0, 2.0]  # the first ones have them all


@pytest.mark.parametrize("kind", [np.float32, np.int64, np.bool_])
def test_one_hot_labels_and_columns_are_class_numbers(kind: type) -> None:
    x, y = np.zeros((5, 2), np.float32), np.array([2, 0, 1, 1, 2])
    rows = np.eye(3)[y].astype(kind)
    for data in ({"x": x, "y": rows}, {"x": x, "y": y[:, None]}):
        samples = samples_from(data)
        check(samples, 3)
        assert labels(samples) == y.tolist()
    items = samples_from([{"x": x[i], "y": rows[i]} for i in range(5)], batched=False)
    assert labels(items) == y.tolist()
    soft = samples_from({"x": x, "y": np.full((5, 3), 1 / 3, np.float32)})
    with pytest.raises(DataError, match=r"one class index per sample. Got torch.float32 of shape \(5, 3\)"):
        check(soft, 3)


def test_labels_at_the_end_of_long_data_are_looked_at() -> None:
    class Sorted(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
        def __len__(self) -> int:
            return 1000

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return torch.zeros(1), index // 100

    with pytest.raises(DataError, match=r"must lie in 0\.\.8, the model's classes\. Got 9 at sample 900"):
        check(samples_from(Sorted()), 9, at_most=20)
