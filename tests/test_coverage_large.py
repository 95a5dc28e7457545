"""A network whose weights were put into a file is the same network, ties and all; the file's name is gone."""

import copy
import gc
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

from fxfuse.coverage import large
from fxfuse.coverage.large import collect, left_in_file


def tied() -> nn.Module:
    network = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5, bias=False)).double()
    network[2].weight = network[0].weight
    return network


def test_a_large_network_stays_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "LARGE", 1)
    network = tied()
    before = copy.deepcopy(network)
    places = [p.data_ptr() for p in network.parameters()]
    assert left_in_file(network, tmp_path) is network
    assert not list(tmp_path.iterdir())
    assert all(p.data_ptr() != place for p, place in zip(network.parameters(), places, strict=True))
    assert network[2].weight is network[0].weight
    words = torch.tensor([[0, 4, 2]])
    assert torch.equal(network(words), before(words))
    network(words).sum().backward()
    with torch.no_grad():
        network[1].weight.add_(1)
    torch.testing.assert_close(network[1].weight, before[1].weight + 1)


def test_a_small_one_is_left_alone(tmp_path: Path) -> None:
    network = tied()
    place = network[1].weight.data_ptr()
    left_in_file(network, tmp_path)
    assert network[1].weight.data_ptr() == place


class Cyclic:
    """Something that only a search for cycles frees."""

    def __init__(self) -> None:
        self.itself = self


def test_cycles_are_looked_for_where_networks_are_large() -> None:
    gc.collect()
    kept = weakref.ref(Cyclic())
    collect(1000)
    assert kept() is not None
    collect(1 << 30)
    assert kept() is None
