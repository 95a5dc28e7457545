"""The best state is the one of the lowest score; what is saved comes back as it was, optimisers included."""

import pytest
import torch
from fits import Store

from fxfuse.passes import keeping
from fxfuse.passes.keeping import Best, Keeper, copied, exchange, optimizer_tensors, put, restore_optimizer


def test_the_last_figure_decides_and_no_number_never_does():
    best, now = Best((1.0, 3.0), {"w": torch.zeros(1)}), {"w": torch.ones(1)}
    best.offer((0.0, 3.0), now, 1)
    best.offer((0.0, float("nan")), now, 2)
    assert (best.figures, best.at, float(best.state["w"])) == ((1.0, 3.0), 0, 0.0)
    best.offer((9.0, 2.0), now, 3)
    now["w"].zero_()
    assert (best.figures, best.at, float(best.state["w"])) == ((9.0, 2.0), 3, 1.0)


def test_values_are_exchanged_in_place():
    one, other = {"w": torch.ones(2)}, {"w": torch.zeros(2)}
    places = one["w"].data_ptr(), other["w"].data_ptr()
    exchange(one, other)
    assert torch.equal(one["w"], torch.zeros(2))
    assert torch.equal(other["w"], torch.ones(2))
    assert places == (one["w"].data_ptr(), other["w"].data_ptr())


def test_parts_come_back_by_name(monkeypatch):
    keeper = Keeper(Store(stop=9), "key")
    assert keeper.load() is None
    assert not keeper.due()
    keeper.save({"done": 3}, now={"a.b": torch.ones(2)}, best={"a.b": torch.zeros(2)})
    found = keeper.load()
    assert found is not None
    meta, part = found
    assert meta == {"done": 3}
    assert torch.equal(part("now")["a.b"], torch.ones(2))
    assert torch.equal(part("best")["a.b"], torch.zeros(2))
    assert part("mean") == {}
    monkeypatch.setattr(keeping, "SAVE_SECONDS", -1.0)
    assert keeper.due()


def test_without_a_store_nothing_happens():
    keeper = Keeper(None, "key")
    keeper.save({}, now={})
    assert not keeper.due()
    assert keeper.load() is None


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "NAdam", "RMSprop", "Adagrad", "Rprop", "ASGD", "Adamax"])
def test_an_optimiser_goes_on_bit_for_bit(name):
    options = {"momentum": 0.9} if name == "SGD" else {}

    def made():
        parameter = torch.nn.Parameter(torch.linspace(-1, 1, 6))
        return parameter, getattr(torch.optim, name)([parameter], lr=0.1, **options)

    def steps(parameter, optimizer, count):
        for _ in range(count):
            optimizer.zero_grad()
            (parameter**4).sum().backward()
            optimizer.step()

    whole, first = made()
    steps(whole, first, 5)
    half, second = made()
    steps(half, second, 2)
    again, third = made()
    put({"p": again}, copied({"p": half}))
    restore_optimizer(third, {k: v.clone() for k, v in optimizer_tensors(second).items()})
    steps(again, third, 3)
    assert torch.equal(again, whole)
