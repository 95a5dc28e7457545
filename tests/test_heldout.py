"""Spellings that no rule was written for: their laws, and the whole way on one of each front end's."""

import pytest
from heldout import NETS
from heldout_more import MORE

from fxfuse.coverage.checks import COLUMNS, LAWS
from fxfuse.coverage.entry import Entry
from fxfuse.coverage.worker import run_row
from fxfuse.models_zoo.zoo import Input
from fxfuse.pipeline import analyse

SPACES = {
    "functional batch norm": "8",
    "view with a free middle": "4 6",
    "einsum with ellipses": "3 5 5",
    "slices written in place": "2 2 5",  # five pass a clamp that the others do not; of those, two pass tanh
    "shared and tied": "8",
    "parameters in arithmetic": "3 7 9",
    "lambda layers": "2 3 6 8",
    "nested containers": "9",
    "constant branches": "8 8",
    "hypernetwork": "9 16",
    "rotary positions": "4 8",  # queries and keys turn in pairs
    "unfold and fold": "6 6",
    "parametrisations": "8 10",
    "stacked experts": "3 7",
}
SPACES_MORE = {
    "transposed parameters": "2 8 9",
    "extremes": "3 8",
    "cells and states": "7 8",
    "final states": "7 7 7 7",
    "old hooks": "7 8",
    "functional attention": "2 4 4 8 8",
    "bags and sums": "7 8",
    "complex weights": "6 8",
    "record": "8 8",
    "packed innermost": "2 3 6",
    "keywords": "8",
}
ALL = NETS | MORE


def entry(name):
    build, shape = ALL[name]
    taken = Input((5,), vocabulary=20) if shape is None else Input(shape)
    return Entry(name, "held out", build, (taken,))


@pytest.mark.parametrize("name", NETS)
def test_laws_hold_in_every_spelling(name, tmp_path):
    record = run_row(entry(name), tmp_path, columns=(*LAWS, "fused", "state_dict"))
    assert not record.failed, record.reason


@pytest.mark.parametrize("name", MORE)
def test_laws_hold_where_they_once_did_not(name, tmp_path):
    record = run_row(entry(name), tmp_path, columns=LAWS)
    assert not record.failed, record.reason


@pytest.mark.parametrize("name", ALL)
def test_neurons_are_found_in_every_spelling(name):
    build, _ = ALL[name]
    found = analyse(build().eval(), entry(name).example(2))
    assert not found.axes.opaque
    assert " ".join(map(str, sorted(space.size for space in found.axes.spaces))) == (SPACES | SPACES_MORE)[name]


@pytest.mark.parametrize("name", ["einsum with ellipses", "hypernetwork"])
def test_the_whole_way(name, tmp_path):
    record = run_row(entry(name), tmp_path)
    assert record.green, record.reason
    assert set(record.cells) == set(COLUMNS)
