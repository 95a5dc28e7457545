"""The matrix: what it lists, what a row says, that its laws can fail, that an interrupted run goes on."""

import json
import multiprocessing
from dataclasses import replace
from functools import partial
from typing import ClassVar

import pytest
import torch
import torchvision
from torch import nn

from fxfuse.coverage import driver
from fxfuse.coverage.catalogue import catalogue, choose, missing
from fxfuse.coverage.checks import COLUMNS, LAWS, CheckError, Column, Subject, permutation, traced
from fxfuse.coverage.driver import End, Limits, fingerprint, run_rows
from fxfuse.coverage.entry import Entry
from fxfuse.coverage.record import LEFT, Outcome, Record, place, read
from fxfuse.coverage.table import as_json, counts, kept, markdown
from fxfuse.coverage.worker import UNDER_WAY, _cell, run_row
from fxfuse.errors import SourceError
from fxfuse.models_zoo.zoo import Input
from fxfuse.passes.axis_law import permutation_error
from fxfuse.types import Leaf

MLP = "zoo:mlp"


def test_every_builder_of_torchvision_has_a_row():
    builders = torchvision.models.list_models(module=torchvision.models)
    assert {n for n, e in catalogue().items() if e.family == "torchvision classification"} == set(builders)


def test_families_are_as_large_as_promised():
    families = counts([Record(name, entry.family, "") for name, entry in catalogue().items()])
    assert families["timm"][2] >= 40
    assert families["torchvision segmentation"][2] >= 4
    assert families["torchvision detection"][2] >= 5
    assert all(e.submodule == "backbone" for e in catalogue().values() if e.family == "torchvision detection")
    assert {"torch", "zoo", "transformers", "torchvision narrow"} <= set(families)


@pytest.mark.skipif("timm" in missing(), reason="timm is an extra")
def test_the_chosen_timm_models_exist():
    import timm

    assert {e.name for e in catalogue().values() if e.family == "timm"} <= set(timm.list_models())


def test_rows_are_chosen_by_pattern_in_the_order_of_the_patterns():
    assert list(choose(["vgg1[13]", "alexnet"])) == ["vgg11", "vgg13", "alexnet"]
    assert {e.family for e in choose(families=["torchvision c"]).values()} == {"torchvision classification"}
    fast = choose(fast=True)
    assert fast
    assert all(entry.fast for entry in fast.values())


def test_a_word_that_fits_nothing_is_an_error():
    with pytest.raises(SourceError, match=r"called 'resnet18x'; did you mean 'resnet18'"):
        choose(["resnet18x"])
    with pytest.raises(SourceError, match="no family 'torchvisoin'"):
        choose(families=["torchvisoin"])


def test_examples_are_bound_by_name_where_names_are_given():
    entry = Entry("x", "f", nn.Identity, (Input((4,)), Input((3,), 9)), ("a", "b"))
    example = entry.example(5, 1)
    assert isinstance(example, dict)
    assert {name: tuple(x.shape) for name, x in example.items()} == {"a": (5, 4), "b": (5, 3)}
    assert example["b"].dtype == torch.int64
    assert entry.shape == "4, 3"


# ------------------------------------------------------------------------------------------------ one row


def test_a_small_model_is_green_in_every_column(tmp_path):
    record = run_row(catalogue()[MLP], tmp_path, name=MLP)
    assert record.green, record.reason
    assert list(record.cells) == list(COLUMNS)
    assert read(tmp_path, MLP) == record


def test_laws_alone_leave_the_rest_to_another_run(tmp_path):
    record = run_row(catalogue()["zoo:lstm"], tmp_path, name="zoo:lstm", columns=LAWS)
    assert not record.green
    assert not record.whole
    assert not record.failed
    assert {name for name, cell in record.cells.items() if cell.reason == LEFT} == set(COLUMNS) - set(LAWS)


def broken() -> nn.Module:
    raise RuntimeError("no such weights")


class Fixed(nn.Module):
    """Code that takes one batch size only."""

    def forward(self, x):
        return x.reshape(2, 4)


def test_a_column_that_runs_out_of_memory_says_so(tmp_path):
    def fails(_):
        return str(torch.empty(1 << 50))

    cell = _cell(Column("large", fails), Subject(Entry("large", "f", broken, (Input((4,)),)), tmp_path))
    assert (cell.state, cell.reason) == ("failed", "needs more memory than --gigabytes allows")


@pytest.mark.parametrize(
    ("build", "reason"), [(broken, "cannot be built: no such weights"), (Fixed, "takes the example but no other batch")]
)
def test_a_model_that_cannot_be_taken_is_a_row_with_its_reason(build, reason, tmp_path):
    record = run_row(Entry("bad", "f", build, (Input((4,)),)), tmp_path)
    assert record.done
    assert record.failed
    assert reason in record.reason
    assert all(cell.state == "not run" for name, cell in record.cells.items() if name != "traced")


def test_the_permutation_law_fails_where_an_axis_is_wrong(tmp_path):
    row = Subject(catalogue()[MLP], tmp_path)
    traced(row)
    assert permutation(row)
    found = row.analysed()
    name = next(n for n, a in found.axes.state.items() if n.endswith("bias") and a.dims[0].space is not None)
    pinned = replace(found.axes.state[name], dims=(Leaf(found.axes.state[name].dims[0].size),))
    row.analysis = replace(found, axes=replace(found.axes, state={**found.axes.state, name: pinned}))
    with pytest.raises(CheckError, match="outputs change by"):
        permutation(row)


class Blind(nn.Module):
    """Ignores its neurons, so that a law over them proves nothing."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.b(torch.relu(self.a(x))) * 0.0 + x[:, :2]


class Chaotic(nn.Module):
    """Doubles a small difference in each of its layers."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(12, 12) for _ in range(60)])

    def forward(self, x):
        for layer in self.layers:
            x = torch.sin(3 * layer(x))
        return x


def test_a_network_that_amplifies_rounding_is_looked_at_with_smaller_weights(tmp_path):
    row = Subject(Entry("chaotic", "f", Chaotic, (Input((12,)),)), tmp_path)
    traced(row)
    assert permutation_error(row.analysed().program, row.analysed().axes, seed=4) > 1e-4
    assert float(permutation(row)) < 1e-9
    assert row.gain < 1


def test_a_law_that_cannot_fail_is_no_proof(tmp_path):
    row = Subject(Entry("blind", "f", Blind, (Input((4,)),)), tmp_path)
    traced(row)
    with pytest.raises(CheckError, match="the law cannot fail here"):
        permutation(row)


# -------------------------------------------------------------------------------------------- many rows


def fake(names, folder, limits, code, seen):
    for name in names:
        seen.append(name)
        Record(name, "zoo", "4", cells={c: Outcome("ok") for c in limits.columns}, done=True, code=code).write(folder)
        yield name, End(0, False, 1.0)


def test_a_run_goes_on_where_it_was(tmp_path, monkeypatch):
    rows = {name: catalogue()[name] for name in ("zoo:mlp", "zoo:lstm", "zoo:gru", "zoo:vit")}
    full = {column: Outcome("ok") for column in COLUMNS}
    for record in (
        Record("zoo:mlp", "zoo", "4", cells=full, done=True, code="older"),
        Record("zoo:lstm", "zoo", "4", cells=full | {"onnx": Outcome("failed", reason="no")}, done=True, code="older"),
        Record("zoo:gru", "zoo", "4", cells={"traced": Outcome("ok")}),
    ):
        record.write(tmp_path)
    expected = {
        "none": ["zoo:gru", "zoo:vit"],
        "failed": ["zoo:lstm"],
        "other": ["zoo:mlp"],
        "all": list(rows),
    }
    for again, names in expected.items():
        seen: list[str] = []
        monkeypatch.setattr(driver, "_ends", partial(fake, seen=seen))
        found = run_rows(rows, tmp_path, Limits(), again=again, say=lambda _: None)
        assert seen == names
        assert list(found) == list(rows)


class Waiting:
    """A process that runs until it is stopped; ``started`` holds all of them."""

    started: ClassVar[list["Waiting"]] = []

    def __init__(self, args, **_):
        self.folder, self.name = args[1], args[0]
        self.sentinel, self.other = multiprocessing.Pipe()
        self.exitcode = None

    def start(self):
        self.started.append(self)
        Record(self.name, "zoo", "4", cells={"traced": UNDER_WAY}, code=fingerprint()).write(self.folder)

    def is_alive(self):
        return self.exitcode is None

    def terminate(self):
        self.exitcode = -15
        self.other.close()

    def join(self, _):
        self.sentinel.close()


@pytest.fixture
def processes(monkeypatch):
    monkeypatch.setattr(Waiting, "started", [])
    monkeypatch.setattr(driver, "_starter", lambda: Waiting)
    return Waiting.started


def test_a_row_past_its_time_is_stopped_where_it_was(tmp_path, processes):
    rows = {name: catalogue()[name] for name in (MLP, "zoo:lstm", "zoo:gru")}
    found = run_rows(rows, tmp_path, Limits(seconds=0.01, jobs=2), say=lambda _: None)
    assert {name: record.reason for name, record in found.items()} == dict.fromkeys(rows, "traced: stopped after 0 s")
    assert [process.is_alive() for process in processes] == [False] * 3


def test_an_interrupted_run_leaves_no_process_and_no_verdict(tmp_path, processes, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(driver.connection, "wait", interrupt)
    rows = {name: catalogue()[name] for name in (MLP, "zoo:lstm", "zoo:gru")}
    with pytest.raises(KeyboardInterrupt):
        run_rows(rows, tmp_path, Limits(jobs=2), say=lambda _: None)
    assert [(process.name, process.is_alive()) for process in processes] == [(MLP, False), ("zoo:lstm", False)]
    left = read(tmp_path, MLP)
    assert left is not None
    assert not left.done


def test_a_broken_record_is_run_again(tmp_path):
    place(tmp_path, MLP).write_text("{", encoding="utf-8")
    assert read(tmp_path, MLP) is None


@pytest.mark.slow
def test_a_row_that_takes_too_long_is_stopped(tmp_path):
    found = run_rows({MLP: catalogue()[MLP]}, tmp_path, Limits(seconds=0.01), say=lambda _: None)
    assert found[MLP].done
    assert "stopped after" in found[MLP].reason or "ended with status" in found[MLP].reason


@pytest.mark.slow
def test_a_row_in_a_process_of_its_own(tmp_path):
    found = run_rows({MLP: catalogue()[MLP]}, tmp_path, Limits(columns=LAWS), say=lambda _: None)
    assert not found[MLP].failed, found[MLP].reason
    assert found[MLP].code == fingerprint()


# ------------------------------------------------------------------------------------------------ the page


def test_the_page_and_its_json():
    full = {column: Outcome("ok", "1e-16") for column in COLUMNS}
    rows = [
        Record("good", "a", "4", "narrow", cells=full, done=True, code="c"),
        Record("bad", "a", "4", cells=full | {"onnx": Outcome("failed", reason="no | form")}, done=True, code="c"),
        Record("half", "b", "4", cells=full | {"onnx": Outcome("not run", reason=LEFT)}, done=True, code="c"),
    ]
    assert counts(rows) == {"a": (1, 2, 2), "b": (0, 1, 1)}
    page = markdown(rows, ["A note."])
    assert "| a | 1 | 2 | 2 |" in page
    assert "| all | 1 | 3 | 3 |" in page
    assert "| bad | onnx: no \\| form |" in page
    assert "| good (narrow) | 4 | ✓ 1e-16 |" in page
    assert "A note." in page
    assert "states of the code" not in page
    assert "by 2 states of the code" in markdown([rows[0], replace(rows[1], code="d")])
    content = json.loads(as_json(rows))
    assert [row["green"] for row in content["rows"]] == [True, False, False]
    assert content["code"] == ["c"]
    assert "torch" in content["versions"]


def test_the_page_names_what_was_not_run(tmp_path):
    Record(MLP, "zoo", "4", done=True).write(tmp_path)
    there, left = kept(tmp_path, [MLP, "resnet18"])
    assert [record.name for record in there] == [MLP]
    assert left == ["resnet18"]
