import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, fx, nn
from zoo_parents import CPU, analysed, zoo_parents

from fxfuse.errors import DataError
from fxfuse.models_zoo.randomise import randomise
from fxfuse.models_zoo.zoo import ZOO
from fxfuse.passes.correspond import correspond
from fxfuse.passes.norms import Moments, pool_norms, recompute_norms
from fxfuse.passes.observe import Observer
from fxfuse.passes.repair import _Layer, rescale
from fxfuse.passes.rewrite import rewrite
from fxfuse.samples import TensorSamples
from fxfuse.types import Analysis, Grouping


def averaged(parents: list[Analysis]) -> tuple[dict[int, Grouping], tuple[float, ...]]:
    """Neuron ``i`` of every parent goes into neuron ``i``."""
    share = 1.0 / len(parents)
    out = {}
    for space in parents[0].axes.spaces:
        eye = torch.eye(space.size, dtype=torch.float64)
        if space.outer is None:
            merge, unmerge = eye * share, eye
        else:
            blocks = next(s.size for s in parents[0].axes.spaces if s.id == space.outer)
            unmerge = eye.expand(blocks, blocks, -1, -1).clone()
            merge = unmerge
        out[space.id] = Grouping(space.id, (merge,) * len(parents), (unmerge,) * len(parents))
    return out, (share,) * len(parents)


def statistics(module: nn.Module, inputs: tuple[Tensor, ...]) -> list[tuple[Tensor, Tensor]]:
    """Mean and unbiased variance of every batch norm's input, each normalised by this very batch."""
    found = []
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None
            layer.train()
    with torch.no_grad():
        module(*inputs)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            found.append((layer.running_mean.clone(), layer.running_var.clone()))  # type: ignore[union-attr]
    return found


@pytest.mark.parametrize("name", ["vgg11_bn", "resnet20", "mobile_se"])
def test_one_batch_is_what_training_mode_finds(name: str) -> None:
    (parent,) = zoo_parents(name, (None,))
    inputs = ZOO[name].example(24)
    module = parent.program.module
    expected = statistics(randomise(ZOO[name].factory(), 0).eval(), inputs)
    assert recompute_norms(module, TensorSamples(inputs), device=CPU, batch_size=24) == len(expected)
    layers = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer, (mean, var) in zip(layers, expected, strict=True):
        assert torch.allclose(layer.running_mean, mean, rtol=1e-4, atol=1e-5)
        assert torch.allclose(layer.running_var, var, rtol=1e-4, atol=1e-6)
        assert int(layer.num_batches_tracked) == 1


def test_the_first_layer_is_exact_for_any_batches() -> None:
    (parent,) = zoo_parents("resnet20", (None,))
    module = parent.program.module
    x = torch.cat([torch.randn(15, 3, 32, 32), 5.0 + 3.0 * torch.randn(16, 3, 32, 32)])
    recompute_norms(module, TensorSamples((x,)), device=CPU, batch_size=10)
    with torch.no_grad():
        y = module.get_submodule("conv1")(x).double()
    norm = module.get_submodule("bn1")
    assert torch.allclose(norm.running_mean.double(), y.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    assert torch.allclose(norm.running_var.double(), y.var((0, 2, 3)), rtol=1e-5)
    assert int(norm.num_batches_tracked) == 4


def test_functional_batch_norms_are_recomputed_too() -> None:
    (parent,) = zoo_parents("functional_conv", (None,))
    module, samples = parent.program.module, TensorSamples(ZOO["functional_conv"].example(30))
    assert recompute_norms(module, samples, device=CPU) == 1
    found: dict[str, Tensor] = {}
    Observer(parent.program, ["conv2d"], CPU).observe(samples.inputs, found.__setitem__)
    state = module.state_dict()
    assert torch.allclose(state["running_mean"], found["conv2d"].mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(state["running_var"], found["conv2d"].var((0, 2, 3)), rtol=1e-4)


def test_norms_leave_mode_and_parameters_and_repeat_to_the_bit() -> None:
    (parent,) = zoo_parents("vgg11_bn", (None,))
    first, second = parent.program.module, copy.deepcopy(parent.program.module)
    first.train()
    first.get_submodule("features.0").eval()
    modes = [part.training for part in first.modules()]
    before = {name: p.clone() for name, p in first.named_parameters()}
    samples = TensorSamples(ZOO["vgg11_bn"].example(20))
    for module in (first, second):
        generator = torch.Generator().manual_seed(3)
        recompute_norms(module, samples, device=CPU, batch_size=8, generator=generator)
    assert [part.training for part in first.modules()] == modes
    assert all(torch.equal(before[name], p) and p.requires_grad for name, p in first.named_parameters())
    assert all(torch.equal(a, b) for a, b in zip(first.buffers(), second.buffers(), strict=True))


def test_nothing_behind_the_last_norm_runs() -> None:
    class Stops(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.head = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.norm(self.a(x))))  # type: ignore[no-any-return]

    module = analysed(Stops(), (torch.randn(3, 4),)).program.module
    module.get_submodule("head").register_forward_hook(lambda *_: pytest.fail("ran too far"))
    samples = TensorSamples((torch.randn(9, 4),))
    assert recompute_norms(module, samples, device=CPU, batch_size=4) == 1
    assert recompute_norms(zoo_parents("mlp")[0].program.module, samples, device=CPU) == 0


def test_bad_data_leaves_the_norms_alone() -> None:
    (parent,) = zoo_parents("vgg11_bn", (None,))
    module = parent.program.module
    before = {name: b.clone() for name, b in module.named_buffers()}
    x = torch.randn(4, 3, 32, 32)
    with pytest.raises(DataError, match="at least two samples"):
        recompute_norms(module, TensorSamples((x[:1],)), device=CPU)
    x[2, 0, 0, 0] = float("inf")
    with pytest.raises(DataError, match=r"the batch norm at node features_1 \(module features.1"):
        recompute_norms(module, TensorSamples((x,)), device=CPU)
    assert all(torch.equal(before[name], b) for name, b in module.named_buffers())


def test_moments_merge() -> None:
    x = torch.randn(50, 3, 7) * 4 + 100
    moments = Moments()
    for part in x.split([1, 20, 29]):
        moments.add(part, 1)
    mean, var = moments.read(correction=1)
    assert torch.allclose(mean, x.double().mean((0, 2)))
    assert torch.allclose(var, x.double().var((0, 2)), rtol=1e-5)


def output_moments(analysis: Analysis, nodes: list[str], samples: TensorSamples) -> dict[str, tuple[Tensor, Tensor]]:
    found: dict[str, Moments] = {name: Moments() for name in nodes}
    observer = Observer(analysis.program, nodes, CPU)
    observer.observe(samples.inputs, lambda name, v: found[name].add(v, 1 if v.dim() == 4 else -1) and None)
    return {name: moments.read(correction=0) for name, moments in found.items()}


@pytest.mark.parametrize(
    ("name", "layers"), [("functional_conv", ["conv2d_1"]), ("mlp", ["_1", "_3"]), ("pixel_shuffle", None)]
)
def test_rescaled_layers_have_the_parents_mean_and_deviation(name: str, layers: list[str] | None) -> None:
    parents = zoo_parents(name)
    samples = TensorSamples(ZOO[name].example(64))
    groupings, weights = averaged(parents)
    fused = rewrite(correspond(parents[0], parents), groupings, weights)
    layers = layers or [node.name for node in fused.graph.nodes if node.op == "call_module"][:1]
    count = rescale(fused, parents, parents[0].axes, groupings, weights, samples, device=CPU)
    assert count >= len(layers)
    own = Analysis(replace(parents[0].program, module=fused), parents[0].axes, parents[0].partition)
    got = output_moments(own, layers, samples)
    aims = [output_moments(parent, layers, samples) for parent in parents]
    for layer in layers:
        mean = sum(a[layer][0] for a in aims) / 2
        deviation = sum(a[layer][1].sqrt() for a in aims) / 2
        assert torch.allclose(got[layer][0], torch.as_tensor(mean), rtol=1e-4, atol=1e-4)
        assert torch.allclose(got[layer][1].sqrt(), torch.as_tensor(deviation), rtol=1e-4)


@pytest.mark.parametrize("groups", [1, 3])
def test_transposed_convolutions_are_scaled_along_their_outputs(groups: int) -> None:
    layer = nn.ConvTranspose2d(6, 9, 3, stride=2, groups=groups)
    x, factor, shift = torch.randn(2, 6, 4, 4), torch.rand(9), torch.randn(9)
    with torch.no_grad():
        expected = layer(x) * factor.view(1, 9, 1, 1) + shift.view(1, 9, 1, 1)
        _Layer(layer.weight, layer.bias, 1, groups).scale(factor, shift)
        assert torch.allclose(layer(x), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["otfusion_mlp", "functional_conv", "pixel_shuffle", "unet", "vit", "shared_layers"])
def test_rescaling_a_network_fused_from_itself_changes_nothing(name: str) -> None:
    (parent,) = zoo_parents(name, (None,))
    groupings, weights = averaged([parent, parent])
    fused = rewrite(correspond(parent, [parent, parent]), groupings, weights)
    inputs = ZOO[name].example(8)
    before = fused(*inputs)
    rescale(fused, [parent, parent], parent.axes, groupings, weights, TensorSamples(inputs), device=CPU)
    after = fused(*inputs)
    assert torch.allclose(before, after, rtol=1e-3, atol=1e-4 * float(before.detach().abs().max()))


def test_layers_that_a_norm_reads_are_left_alone() -> None:
    parents = zoo_parents("vgg11_bn")
    groupings, weights = averaged(parents)
    fused = rewrite(correspond(parents[0], parents), groupings, weights)
    before = {k: v.clone() for k, v in fused.state_dict().items()}
    samples = TensorSamples(ZOO["vgg11_bn"].example(8))
    assert rescale(fused, parents, parents[0].axes, groupings, weights, samples, device=CPU) == 0
    assert all(torch.equal(before[k], v) for k, v in fused.state_dict().items())


def test_batches_of_one_value_are_pooled() -> None:
    """Training mode refuses one value per channel; pooled over batches there are enough of them."""
    module = fx.symbolic_trace(nn.Sequential(nn.BatchNorm2d(3))).eval()
    x = torch.randn(6, 3, 1, 1)
    assert pool_norms(module, ((row[None],) for row in x)) == 1
    norm = module.get_submodule("0")
    assert torch.allclose(norm.running_mean, x.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(norm.running_var, x.var((0, 2, 3)), rtol=1e-5)
    assert int(norm.num_batches_tracked) == 0
