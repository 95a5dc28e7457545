"""Inputs by name: from data in any order of keys to a network that is called as its parents are, in every format."""

import copy
import inspect

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import fxfuse
from fxfuse.data import input_names, samples_from
from fxfuse.errors import DataError, MismatchError
from fxfuse.export import to_onnx, to_pt2
from fxfuse.models_zoo import randomise
from fxfuse.naming import in_order
from fxfuse.passes.trace import trace


class Reader(nn.Module):
    """Called as language models are: by names, most of them optional. The two integer inputs are of one shape."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.hidden, self.head = nn.Embedding(20, 6), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, input_ids=None, attention_mask=None, input=None, *, scale=None, labels=None):  # noqa: ARG002
        x = self.embed(input_ids) * attention_mask[..., None]
        if input is not None:
            x = x + input
        if scale is not None:
            x = x * scale[:, None, None]
        x = torch.relu(self.hidden(x))
        return {"logits": self.head(x.mean(1)), "hidden": x}


def batch(count: int = 4, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "attention_mask": torch.randint(2, (count, 5), generator=generator),
        "scale": torch.rand(count, generator=generator),
        "input": torch.randn(count, 5, 6, generator=generator),
        "input_ids": torch.randint(20, (count, 5), generator=generator),
    }


NAMES = ("input_ids", "attention_mask", "input", "scale")


@pytest.mark.parametrize("front_end", ["fx", "export"])
def test_every_form_is_called_by_the_parents_names(front_end, tmp_path):
    parent = randomise(Reader(), seed=1).eval()
    program = trace(parent, batch(), front_end=front_end)
    assert tuple(inspect.signature(program.module.forward).parameters) == NAMES
    assert (program.inputs, program.keywords) == (NAMES, NAMES)
    given = batch(3, seed=1)
    wanted = parent(**given)["logits"]
    torch.testing.assert_close(program.module(**given)["logits"], wanted)
    reloaded = torch.export.load(to_pt2(program.module, program.example, tmp_path / "m.pt2", keywords=NAMES)).module()
    for some in (given, dict(reversed(given.items()))):
        torch.testing.assert_close(reloaded(**some)["logits"], wanted)
    report = to_onnx(program.module, program.example, tmp_path / "m.onnx")
    assert (report.inputs, report.outputs) == (NAMES, ("logits", "hidden"))
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    (found,) = session.run(["logits"], {name: x.numpy() for name, x in given.items()})
    torch.testing.assert_close(torch.tensor(found), wanted)
    again = to_onnx(torch.export.load(tmp_path / "m.pt2"), program.example, tmp_path / "again.onnx")
    assert (again.inputs, again.outputs) == (NAMES, ("logits", "hidden"))


def test_what_came_by_position_is_called_by_position():
    given = batch()
    program = trace(randomise(Reader(), seed=1), (given["input_ids"], given["attention_mask"]))
    assert (program.inputs, program.keywords) == (NAMES[:2], ())


class Many(nn.Module):
    def forward(self, first, *rest, scale):
        return first + sum(rest) * scale


def test_unnamed_arguments_are_numbered():
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.many = Many()

        def forward(self, x):
            return self.many(x, x + 1, x + 2, scale=x)

    program = trace(Outer(), torch.randn(2, 3), submodule="many")
    assert (program.inputs, program.keywords) == (("first", "rest_0", "rest_1", "scale"), ("scale",))


def test_a_program_that_is_a_parent_is_called_as_it_was_exported(tmp_path):
    given = batch()
    first = trace(randomise(Reader(), seed=1), given)
    by_name = torch.export.load(to_pt2(first.module, first.example, tmp_path / "n.pt2", keywords=NAMES)).module()
    by_place = torch.export.load(to_pt2(first.module, first.example, tmp_path / "p.pt2")).module()
    for parent in (by_name, by_place):
        for example in (given, tuple(given[name] for name in NAMES)):
            program = trace(parent, example)
            assert program.inputs == NAMES
            torch.testing.assert_close(program.module(**given), first.module(**given))


# ------------------------------------------------------------------------------------------------- the data


def two_parents() -> list[nn.Module]:
    return [randomise(Reader(), seed=seed).eval() for seed in (1, 2)]


def test_calibration_and_evaluation_may_have_any_order_of_keys():
    parents, data = two_parents(), {**batch(12), "labels": torch.arange(12) % 3}
    settings = {"method": "average", "seed": 3}
    ordered = {name: data[name] for name in (*NAMES, "labels")}
    wanted = fxfuse.fuse(parents, calibration=ordered, evaluation=ordered, **settings)
    found = fxfuse.fuse(parents, calibration=data, evaluation=dict(reversed(data.items())), **settings)
    assert found.scores == wanted.scores
    given = batch(3, seed=7)
    torch.testing.assert_close(found.module(**given), wanted.module(**given), rtol=0, atol=0)
    assert found.scores[0].accuracy == pytest.approx(_accuracy(parents[0], data))


def _accuracy(parent: nn.Module, data: dict[str, Tensor]) -> float:
    answers = parent(**{name: data[name] for name in NAMES})["logits"].argmax(1)
    return float((answers == data["labels"]).float().mean())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("scale"), r"evaluation data \(dict given in Python\) lacks the input 'scale': .* takes "),
        (lambda d: d.update(scales=d.pop("scale")), "has the input 'scales', .* did you mean 'scale'"),
    ],
    ids=["missing", "unexpected"],
)
def test_names_that_do_not_fit_are_told(change, message):
    data, other = batch(6), batch(6)
    change(other)
    with pytest.raises(DataError, match=message):
        fxfuse.fuse(two_parents(), calibration=data, evaluation=other, method="average")


def test_a_missing_and_an_unknown_argument_of_forward_are_told():
    class Strict(Reader):
        def forward(self, input_ids, attention_mask):
            return super().forward(input_ids, attention_mask)

    parents, data = [Strict(), Strict()], batch(6)
    with pytest.raises(DataError, match="missing a required argument: 'attention_mask'"):
        fxfuse.fuse(parents, calibration={"input_ids": data["input_ids"]}, method="average")
    with pytest.raises(DataError, match="no argument 'scale'"):
        fxfuse.fuse(parents, calibration=data, method="average")


class Turned(Reader):
    def forward(self, attention_mask, input_ids):
        return super().forward(input_ids, attention_mask)


def test_parents_with_other_orders_of_arguments_are_refused():
    data = {key: batch(6)[key] for key in NAMES[:2]}
    with pytest.raises(MismatchError, match="parent 1 takes its inputs in the order attention_mask, input_ids"):
        fxfuse.fuse([Reader(), Turned()], calibration=data, method="average")


def test_items_and_batches_are_matched_by_name():
    rows = [{name: x[i] for name, x in batch(4).items()} for i in range(4)]
    mixed = [row if i % 2 else dict(reversed(row.items())) for i, row in enumerate(rows)]
    batches = [batch(2, seed=1), dict(reversed(batch(2, seed=2).items()))]
    for data in (mixed, batches):
        samples = samples_from(copy.copy(data), batched=data is batches)
        inputs, _ = in_order(samples, NAMES).take(torch.tensor([1, 2]))
        plain, _ = samples.take(torch.tensor([1, 2]))
        names = input_names(samples)
        assert names is not None
        for name, x in zip(NAMES, inputs, strict=True):
            assert torch.equal(x, plain[names.index(name)])
            assert x.shape[1:] == batch()[name].shape[1:]
    mixed[2] = {**mixed[2], "more": torch.ones(2)}
    samples = samples_from(mixed, batched=False)
    with pytest.raises(DataError, match=r"sample 2: its inputs are .*more, those of the items before are"):
        samples.take(torch.tensor([2]))


def test_data_without_names_stay_as_they_are():
    samples = samples_from((torch.randn(4, 3), torch.randn(4, 2)))
    assert in_order(samples, ("a", "b")) is samples
