import gc
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo_parents import CPU, analysed, zoo_parents

from fxfuse.errors import DataError, MethodError, MismatchError
from fxfuse.layouts import neurons
from fxfuse.models_zoo.zoo import ZOO
from fxfuse.passes.calibrate import calibrate, calibrate_in_rounds
from fxfuse.passes.observe import Observer
from fxfuse.passes.stretch import at_shape
from fxfuse.samples import TensorSamples
from fxfuse.types import Analysis, Concat, Leaf, Product, SpaceStatistics, TensorAxes


def run(parents: list[Analysis], samples: Any, **options: Any) -> dict[int, SpaceStatistics]:
    options = {"weights": (1 / len(parents),) * len(parents), "device": CPU, "importance": "uniform", **options}
    return calibrate(parents, samples, **options)


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp_min(1e-12))


def values_of(parent: Analysis, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    observer = Observer(parent.program, parent.axes.values, CPU)
    observer.observe(inputs, lambda name, value: found.__setitem__(name, value.double()))
    return found


@pytest.mark.parametrize("name", ["otfusion_mlp", "vgg11_bn", "resnet20", "vit", "packed_qkv", "transformer_encoder"])
def test_streamed_equals_materialised(name: str) -> None:
    parents = zoo_parents(name)
    inputs = ZOO[name].example(70, seed=5)
    streamed = run(parents, TensorSamples(inputs), batch_size=35, rows_per_sample=None)
    assert set(streamed) == {space.id for space in parents[0].axes.spaces}
    values = [values_of(parent, inputs) for parent in parents]
    for space in parents[0].axes.spaces:
        views: list[list[Tensor]] = []
        for node in parents[0].axes.observed[space.id]:
            per_parent = []
            for parent, own in zip(parents, values, strict=True):
                axes = at_shape(parent.axes.values[node], own[node].shape, 1009)
                per_parent.append(neurons(own[node], axes, space))
            views.extend([list(group) for group in zip(*per_parent, strict=True)])
        joined = [torch.cat(view, 1) for view in views]
        energy = torch.stack([x[: len(x) * 32 // 70].square().mean() for x in joined])
        scale = energy.mean() / energy if len(joined) > 1 else torch.ones(1, dtype=torch.float64)
        gram = torch.stack([c * x.T @ x / len(x) for c, x in zip(scale, joined, strict=True)]).mean(0)
        mean = torch.stack([c.sqrt() * x.mean(0) for c, x in zip(scale, joined, strict=True)]).mean(0)
        assert difference(streamed[space.id].gram, gram) < 1e-6
        assert float((streamed[space.id].mean - mean).abs().max() / mean.abs().max()) < 1e-6
        assert streamed[space.id].rows == sum(len(x) for x in joined)


@pytest.mark.parametrize("name", ["mlp", "digits_net", "transformer_encoder"])
def test_batch_size_and_subsampling_do_not_depend_on_each_other(name: str) -> None:
    parents = zoo_parents(name)
    samples = TensorSamples(ZOO[name].example(80, seed=5))
    options: dict[str, Any] = {"rows_per_sample": 7, "importance": "conductance", "importance_samples": 30}
    small = run(parents, samples, batch_size=32, **options)
    large = run(parents, samples, batch_size=1000, **options)
    for number, stats in small.items():
        assert difference(stats.gram, large[number].gram) < 1e-6
        assert difference(stats.importance, large[number].importance) < 1e-5
        assert stats.rows == large[number].rows


def test_same_seed_same_bits_and_another_seed_other_positions() -> None:
    parents = zoo_parents("vgg11_bn")
    samples = TensorSamples(ZOO["vgg11_bn"].example(10))
    first, again, other = (run(parents, samples, seed=s, importance="conductance") for s in (0, 0, 1))
    assert all(torch.equal(first[k].gram, again[k].gram) for k in first)
    assert all(torch.equal(first[k].importance, again[k].importance) for k in first)
    assert any(not torch.equal(first[k].gram, other[k].gram) for k in first)


def test_a_permuted_copy_gives_a_permuted_gram_at_the_same_positions() -> None:
    (parent,) = zoo_parents("functional_conv", (None,))
    (twin,) = zoo_parents("functional_conv", (None,))
    stats = run([parent, twin], TensorSamples(ZOO["functional_conv"].example(20)), rows_per_sample=5)
    for s in stats.values():
        n = s.widths[0]
        assert torch.equal(s.gram[:n, :n], s.gram[n:, n:])
        assert torch.allclose(s.gram[:n, n:], s.gram[:n, :n], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "widths"), [("mlp", (12, 17)), ("resnet20", (4, 6)), ("vit", (16, 24)), ("unet", (6, 4))]
)
def test_parents_of_different_widths_are_stacked_parent_after_parent(name: str, widths: tuple[int, int]) -> None:
    parents = zoo_parents(name, widths)
    stats = run(parents, TensorSamples(ZOO[name].example(4)), importance="conductance", weights=(0.25, 0.75))
    for space in parents[0].axes.spaces:
        s = stats[space.id]
        total = [n * b for n, b in zip(s.widths, s.outer_widths, strict=True)]
        assert s.widths == tuple(p.axes.spaces[space.id].size for p in parents)
        assert s.gram.shape == (sum(total), sum(total))
        assert s.mean.shape == s.importance.shape == (sum(total),)
        shares = [float(part.sum()) for part in torch.split(s.importance, total)]
        assert shares == pytest.approx([0.25, 0.75], abs=1e-9)
        assert float(s.importance.min()) > 0


def test_views_have_equal_say_whatever_their_scale() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.a(x))
            return self.b(h) + self.c(1000.0 * (h + 1.0))

    x = torch.randn(32, 6)
    parent = analysed(Twice(), (x[:2],))
    (stats,) = run([parent], TensorSamples((x,))).values()
    with torch.no_grad():
        h = torch.relu(parent.program.module.get_submodule("a")(x)).double()
    views = [h, 1000.0 * (h + 1.0)]
    unit = [v.T @ v / 32 / v.square().mean() for v in views]
    assert difference(stats.gram / stats.gram.diagonal().mean(), (unit[0] + unit[1]) / 2) < 1e-6


def test_a_space_that_nobody_contracts_is_seen_on_its_last_value() -> None:
    parents = zoo_parents("pixel_shuffle")
    unseen = [s.id for s in parents[0].axes.spaces if s.id not in parents[0].axes.observed]
    assert unseen
    stats = run(parents, TensorSamples(ZOO["pixel_shuffle"].example(4)))
    assert all(float(stats[number].gram.diagonal().min()) > 0 for number in unseen)


def test_memory_does_not_grow_with_the_number_of_samples() -> None:
    class Endless:
        """Samples made when they are asked for; counts the numbers that live tensors hold meanwhile."""

        description = "made up"
        labelled = False

        def __init__(self, count: int) -> None:
            self.count = count
            self.peak = 0

        def __len__(self) -> int:
            return self.count

        def take(self, indices: Tensor) -> tuple[tuple[Tensor, ...], None]:
            gc.collect()
            held = sum(x.numel() for x in gc.get_objects() if type(x) in (Tensor, nn.Parameter))
            self.peak = max(self.peak, held)
            return (torch.randn(len(indices), 20, generator=torch.Generator().manual_seed(int(indices[0]))),), None

    parents = zoo_parents("mlp")
    peaks = []
    for count in (64, 640):
        samples = Endless(count)
        gc.collect()
        gc.freeze()  # all that is older does not count
        try:
            run(parents, samples, batch_size=16, importance="conductance")
        finally:
            gc.unfreeze()
        peaks.append(samples.peak)
    assert peaks[1] <= 1.01 * peaks[0]


def test_the_batch_is_found_in_products_and_concatenations() -> None:
    axes = TensorAxes((Product((Leaf(1009), Leaf(5), Leaf(4, 0))), Concat((Leaf(3, 1), Leaf(2))), Leaf(4 * 1009)))
    found = at_shape(axes, torch.Size((7 * 20, 5, 28)), 1009)
    assert found.dims == (Product((Leaf(7), Leaf(5), Leaf(4, 0))), Concat((Leaf(3, 1), Leaf(2))), Leaf(28))


def test_parents_stay_as_they_are() -> None:
    (parent,) = zoo_parents("vgg11_bn", (None,))
    before = {k: v.clone() for k, v in parent.program.module.state_dict().items()}
    parent.program.module.train()
    run([parent], TensorSamples(ZOO["vgg11_bn"].example(4)), importance="conductance")
    assert parent.program.module.training
    assert all(p.requires_grad and p.grad is None for p in parent.program.module.parameters())
    assert all(torch.equal(before[k], v) for k, v in parent.program.module.state_dict().items())


def test_bad_data_is_told_with_parent_and_place() -> None:
    parents = zoo_parents("mlp")
    good = torch.rand(4, 20)
    with pytest.raises(DataError, match="at least two samples"):
        run(parents, TensorSamples((good[:1],)))
    with pytest.raises(DataError, match=r"parent 0 cannot run on inputs of shape \[4, 21\].*\[batch, 20\]"):
        run(parents, TensorSamples((torch.randn(4, 21),)))
    with pytest.raises(DataError, match=r"parent 0 takes 1 input\(s\) but the data has 2"):
        run(parents, TensorSamples((good, good)))
    with pytest.raises(DataError, match=r"parent 0 has infinite or undefined activations, first seen at node relu"):
        run(parents, TensorSamples((torch.full((4, 20), float("nan")),)))
    weight = next(iter(parents[1].program.module.parameters()))
    with torch.no_grad():
        weight[0, 0] = float("inf")
    for importance in ("uniform", "conductance", "gradient-activation"):
        with pytest.raises(DataError, match="parent 1 has infinite"):
            run(parents, TensorSamples((good,)), importance=importance)


def test_bad_options_are_told() -> None:
    parents = zoo_parents("mlp")
    samples = TensorSamples((torch.randn(4, 20),))
    with pytest.raises(MethodError, match="did you mean 'conductance'"):
        run(parents, samples, importance="conductanse")
    with pytest.raises(MethodError, match="weights must be"):
        run(parents, samples, weights=(1.0,))
    with pytest.raises(MethodError, match="at least 1"):
        run(parents, samples, rows_per_sample=0)
    with pytest.raises(MismatchError, match="parent 0 has 1 neuron spaces that do not match the 2"):
        run([parents[0], *zoo_parents("tied_autoencoder", (None,))], samples)


@pytest.mark.parametrize("name", ["vgg11_bn", "transformer_encoder"])
@pytest.mark.parametrize("importance", ["conductance", "magnitude"])
def test_rounds_change_nothing(name: str, importance: Any) -> None:
    parents = zoo_parents(name)
    samples = TensorSamples(ZOO[name].example(40, seed=5))
    options: dict[str, Any] = {"weights": (0.3, 0.7), "device": CPU, "importance": importance, "rows_per_sample": 3}
    whole = calibrate(parents, samples, **options)
    rounds = list(calibrate_in_rounds(parents, samples, at_once=1, **options))
    assert len(rounds) == sum(space.outer is None for space in parents[0].axes.spaces) > 1
    assert {space.id for part in rounds for space in part.spaces} == {space.id for space in parents[0].axes.spaces}
    found = {number: stats for part in rounds for number, stats in part.statistics.items()}
    assert set(found) == set(whole)
    for number, stats in whole.items():
        other = found[number]
        assert torch.equal(stats.gram, other.gram)
        assert torch.equal(stats.mean, other.mean)
        assert torch.equal(stats.importance, other.importance)
        assert (stats.rows, stats.widths, stats.outer_widths) == (other.rows, other.widths, other.outer_widths)


def test_a_round_is_made_when_it_is_asked_for() -> None:
    parents = zoo_parents("vgg11_bn")
    asked = 0

    class Counted(TensorSamples):
        def take(self, index: Tensor) -> Any:
            nonlocal asked
            asked += 1
            return super().take(index)

    samples = Counted(ZOO["vgg11_bn"].example(8))
    rounds = calibrate_in_rounds(parents, samples, weights=(0.5, 0.5), device=CPU, importance="uniform", at_once=1)
    next(rounds)
    once = asked
    next(rounds)
    assert 0 < once < asked == 2 * once


def test_batches_shrink_where_samples_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    parents = zoo_parents("vgg11_bn")
    samples = TensorSamples(ZOO["vgg11_bn"].example(40, seed=5))
    whole = run(parents, samples)
    sizes = []
    take = TensorSamples.take
    monkeypatch.setattr(TensorSamples, "take", lambda self, index: (sizes.append(len(index)), take(self, index))[1])
    monkeypatch.setattr("fxfuse.passes.calibrate.ACTIVATIONS", 1 << 20)
    small = run(parents, samples)
    assert max(sizes) < 40 == sum(sizes)
    assert all(difference(small[number].gram, stats.gram) < 1e-6 for number, stats in whole.items())
