from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.utils import data as torch_data

from fxfuse.data import class_names, input_names, samples_from
from fxfuse.data_checks import check
from fxfuse.errors import DataError
from fxfuse.holders import ArraySamples, ItemSamples
from fxfuse.recipe import DataSpec, Limit, Preprocessing
from fxfuse.samples import Samples, TensorSamples

X, Y = torch.rand(10, 3, 4), torch.arange(10) % 3


class Items(torch_data.Dataset[Any]):
    """A data set that counts how often it is asked."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items
        self.asked = 0

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        self.asked += 1
        return self.items[index]


class Stream(torch_data.IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(zip(X, Y, strict=True))


def everything(samples: Samples) -> tuple[tuple[Tensor, ...], Tensor | None]:
    return samples.take(torch.arange(len(samples)))


PAIRS = [(x, int(y)) for x, y in zip(X, Y, strict=True)]
FORMS = {
    "tuple": lambda: (X, Y),
    "numpy": lambda: (X.numpy(), Y.numpy()),
    "mapping": lambda: {"x": X, "labels": Y},
    "tensor data set": lambda: torch_data.TensorDataset(X, Y),
    "data set": lambda: Items(PAIRS),
    "list of samples": lambda: PAIRS,
    "list of batches": lambda: [(X[:4], Y[:4]), (X[4:], Y[4:])],
    "generator of batches": lambda: ((X[i : i + 2], Y[i : i + 2]) for i in range(0, 10, 2)),
    "generator of mappings": lambda: ({"image": x, "label": y} for x, y in PAIRS),
    "loader": lambda: torch_data.DataLoader(Items(PAIRS), batch_size=3),
    "stream": Stream,
    "samples": lambda: TensorSamples((X,), Y),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_samples(form: str) -> None:
    samples = samples_from(FORMS[form]())
    assert len(samples) == 10
    assert samples.labelled
    assert input_names(samples) is None
    (x,), y = samples.take(torch.tensor([7, 0, 7]))
    assert torch.equal(x, X[[7, 0, 7]])
    assert y is not None
    assert torch.equal(y, Y[[7, 0, 7]])
    check(samples, 3)


@pytest.mark.parametrize("form", FORMS)
def test_labels_can_be_left_out_everywhere(form: str) -> None:
    samples = samples_from(FORMS[form](), labels=False)
    assert not samples.labelled
    (x,), y = everything(samples)
    assert torch.equal(x, X)
    assert y is None


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("labels", [True, False])
def test_balanced_parts_are_balanced_and_repeatable(form: str, labels: bool) -> None:
    limit = Limit(count=6, how="balanced", seed=3)
    samples = samples_from(FORMS[form](), limit=limit, labels=labels)
    (x,), y = everything(samples)
    found = torch.tensor([int((one == X).flatten(1).all(1).nonzero()) for one in x])
    assert torch.bincount(Y[found]).tolist() == [2, 2, 2]
    assert len(set(found.tolist())) == 6
    assert y is None if not labels else torch.equal(y, Y[found])  # type: ignore[arg-type]
    (again,), _ = everything(samples_from(FORMS[form](), limit=limit, labels=labels))
    assert torch.equal(x, again)


def test_limits() -> None:
    assert torch.equal(everything(samples_from((X, Y), limit=4))[0][0], X[:4])
    drawn = everything(samples_from((X, Y), limit=Limit(count=4, how="random", seed=1)))[0][0]
    assert not torch.equal(drawn, everything(samples_from((X, Y), limit=Limit(count=4, how="random", seed=2)))[0][0])
    assert len(samples_from((X, Y), limit=Limit(count=99, how="balanced"))) == 10
    scarce = torch.tensor([0] * 8 + [1, 1])
    _, y = everything(samples_from((X, scarce), limit=Limit(count=6, how="balanced")))
    assert y is not None
    assert torch.bincount(y).tolist() == [4, 2]
    with pytest.raises(DataError, match=r"A balanced part of .* needs one label per sample"):
        samples_from(X, limit=Limit(count=2, how="balanced"))


def test_an_endless_iterable_needs_a_limit_and_is_read_no_further() -> None:
    def endless() -> Iterator[Any]:
        while True:
            yield X, Y

    assert len(samples_from(endless(), limit=25)) == 25


def test_items_are_fetched_only_when_taken() -> None:
    items = Items(PAIRS)
    samples = samples_from(items)
    items.asked = 0
    samples.take(torch.tensor([1, 2]))
    assert items.asked == 2


def test_named_inputs_keep_their_names_through_subsets() -> None:
    data = {"input_ids": torch.ones(4, 7, dtype=torch.int64), "mask": torch.ones(4, 7), "labels": torch.arange(4)}
    samples = samples_from(data, limit=2, labels=False)
    assert input_names(samples) == ("input_ids", "mask")
    inputs, _ = everything(samples)
    assert [x.dtype for x in inputs] == [torch.int64, torch.float32]
    batched = samples_from([data, data])
    assert (input_names(batched), len(batched)) == (("input_ids", "mask"), 8)
    single = samples_from([{k: v[i] for k, v in data.items()} for i in range(4)])
    assert (input_names(single), len(single)) == (("input_ids", "mask"), 4)


def test_float64_of_numpy_becomes_float32_and_that_of_torch_stays() -> None:
    assert everything(samples_from(X.double().numpy()))[0][0].dtype == torch.float32
    assert everything(samples_from(X.double()))[0][0].dtype == torch.float64
    assert everything(samples_from(Items([x.double().numpy() for x in X])))[0][0].dtype == torch.float32
    assert everything(samples_from(Items(list(X.double()))))[0][0].dtype == torch.float64


def write_images(root: Path) -> None:
    for index in range(6):
        folder = root / ("cat" if index < 4 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8 + index, 8), (index * 40,) * 3).save(folder / f"{index}.png")


def test_an_image_folder_by_spec(tmp_path: Path) -> None:
    write_images(tmp_path / "pets")
    p = {"channels": "grayscale", "resize": 8, "center_crop": 8, "mean": 0.5, "std": 0.5}
    samples = samples_from(DataSpec(source=str(tmp_path / "pets"), preprocessing=p))
    (x,), y = everything(samples)
    expected = (torch.arange(6) * 40 / 255 - 0.5) / 0.5
    torch.testing.assert_close(x, expected[:, None, None, None].expand(6, 1, 8, 8), rtol=1e-6, atol=1e-6)
    assert y is not None
    assert y.tolist() == [0, 0, 0, 0, 1, 1]
    assert class_names(samples) == ("cat", "dog")
    balanced = samples_from(DataSpec(source=str(tmp_path / "pets"), limit={"count": 4, "how": "balanced"}))
    assert isinstance(balanced.samples, ItemSamples)  # type: ignore[attr-defined]
    assert balanced.description == "4 of pets"
    with pytest.raises(
        DataError, match=r"pets: sample 1 has shape \(3, 8, 9\) and sample 0 \(3, 8, 8\); make them equal"
    ):
        everything(samples_from(tmp_path / "pets"))


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    write_images(tmp_path / "pets")
    (tmp_path / "pets" / "cat" / "2.png").write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"pets, sample 2 cannot be read: .*2\.png"):
        everything(samples_from(tmp_path / "pets", preprocessing=Preprocessing(resize=(8, 8))))


def test_array_files_by_spec(tmp_path: Path) -> None:
    bytes_ = (X * 255).to(torch.uint8)
    np.savez(tmp_path / "a.npz", images=bytes_.numpy(), labels=Y.numpy())
    np.save(tmp_path / "x.npy", bytes_.double().numpy())
    np.save(tmp_path / "y.npy", Y.numpy())
    save_file({"features": bytes_.half(), "kind": Y}, tmp_path / "a.safetensors")
    specs = [
        DataSpec(source=str(tmp_path / "a.npz")),
        DataSpec(source=str(tmp_path / "x.npy"), labels=str(tmp_path / "y.npy"), preprocessing={"scale": "1/255"}),
        DataSpec(
            source=str(tmp_path / "a.safetensors"), inputs="features", labels="kind", preprocessing={"scale": "1/255"}
        ),
    ]
    for spec in specs:
        samples = samples_from(spec)
        (x,), y = everything(samples)
        assert x.dtype == torch.float32
        torch.testing.assert_close(x, bytes_ / 255, rtol=1e-6, atol=1e-6)
        assert y is not None
        assert torch.equal(y, Y)


def test_arrays_that_numpy_numbered_are_a_tuple(tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", X.numpy(), Y.numpy())
    samples = samples_from(str(tmp_path / "two.npz"))
    assert input_names(samples) is None
    (x,), y = everything(samples)
    assert torch.equal(x, X)
    assert y is not None
    assert torch.equal(y, Y)
    named = samples_from(DataSpec(source=str(tmp_path / "two.npz"), inputs=("arr_0",), labels=False))
    assert (input_names(named), named.labelled) == (("arr_0",), False)
    np.savez(tmp_path / "many.npz", *[np.full((4, 2), i, np.float32) for i in range(12)])
    inputs, none = everything(samples_from(str(tmp_path / "many.npz")))
    assert none is None
    assert [float(x.mean()) for x in inputs] == list(range(12))


def test_factories_by_spec(tmp_path: Path) -> None:
    (tmp_path / "make.py").write_text(
        "import torch\ndef batches(n):\n    return ((torch.ones(3, 2), torch.zeros(3).long()) for _ in range(n))\n"
        "def fails():\n    yield torch.ones(2, 2)\n    raise ValueError('no more')\n"
    )
    samples = samples_from(DataSpec(source=f"{tmp_path}/make.py:batches", args={"n": 4}))
    assert (len(samples), samples.labelled) == (12, True)
    assert samples.description == f"{tmp_path}/make.py:batches"
    with pytest.raises(DataError, match="fails: no more"):
        samples_from(f"{tmp_path}/make.py:fails")
    with pytest.raises(DataError, match=r"data '.*make.py:bathces': .*did you mean 'batches'"):
        samples_from(f"{tmp_path}/make.py:bathces")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (3, "int given in Python is no data: give a tensor, a data set or an iterable of batches."),
        ([], "list given in Python is empty."),
        (torch.tensor(3.0), "a single number is no array of samples"),
        ((X, Y[:4]), "its arrays differ in their number of samples (inputs 10, labels 4)"),
        ([torch.rand(2, 3), torch.rand(2, 4)], "list given in Python: "),
        ({"labels": Y}, "There is no input"),
        ("/no/such/place", "There is no data at /no/such/place"),
        (__file__, "is no data that can be read; give an image folder, .npy, .npz, .safetensors, or 'module:factory'"),
    ],
)
def test_data_that_cannot_be_read(data: object, expected: str) -> None:
    with pytest.raises(DataError) as caught:
        samples_from(data)
    assert expected in str(caught.value)


def test_arrays_are_not_copied_and_preprocessed_only_when_taken() -> None:
    bytes_ = torch.zeros(10, 3, dtype=torch.uint8)
    samples = samples_from(bytes_)
    assert isinstance(samples, ArraySamples)
    assert samples.inputs[0].data_ptr() == bytes_.data_ptr()
    assert samples.take(torch.tensor([0]))[0][0].dtype == torch.float32
