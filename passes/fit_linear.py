"""Fit the weights of a level in closed form: ridge regression pulled towards the rewritten weights.

For each linear or ordinary convolution layer of the level, in order, with ``x`` its inputs from the fused prefix (the
patches, for a convolution, and a constant for the bias), ``t`` the parents' merged outputs of that layer and ``W_0``
the rewritten weights:

    min_W  sum ||W x - t||^2 + r ||W - W_0||^2   =>   W = W_0 + (sum (t - W_0 x) x') (sum x x' + r I)^-1

Both sums are streamed. ``r`` is a multiple of the mean of the Gram matrix's diagonal; the multiple that does best on
the held-out chunks is taken, and the old weights stay if none is better. Directions that no sample shows keep ``W_0``.
"""

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fxfuse.passes.fitting import LevelTask
from fxfuse.passes.subgraph import subgraph

RIDGES = (1e-3, 1e-2, 1e-1, 1.0)


def fit_linear(task: LevelTask) -> bool:
    """Refit the level's layers in place; returns whether any could be."""
    fitted = False
    nodes = {node.name: node for node in task.piece.graph.nodes}
    for name in task.level.nodes:
        node = nodes.get(name)
        if node is None or node.op != "call_module" or not task.teacher.can_target(name):
            continue
        layer = task.piece.get_submodule(str(node.target))
        if _solvable(layer) and f"{node.target}.weight" in task.level.parameters:
            _refit(task, node, layer)
            fitted = True
    return fitted


def _solvable(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Linear):
        return True
    return isinstance(layer, nn.Conv1d | nn.Conv2d) and layer.groups == 1 and layer.padding_mode == "zeros"


def _refit(task: LevelTask, node: fx.Node, layer: nn.Module) -> None:
    """One layer, if a change does better than none."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    inputs = task.level.inputs
    before = subgraph(task.piece, inputs, (source.name,))
    own = tuple(subgraph(parent, inputs, (node.name,)) for parent in task.parents)
    weight = layer.weight
    assert isinstance(weight, Tensor)
    size = weight[0].numel() + (layer.bias is not None)
    gram = torch.zeros(size, size, dtype=torch.float64, device=weight.device)
    cross = torch.zeros(size, weight.shape[0], dtype=torch.float64, device=weight.device)
    held: list[tuple[Tensor, Tensor]] = []
    old = _matrix(layer)
    with torch.no_grad():
        for chunk in task.chunks:
            x = before(*(chunk.fused[n] for n in inputs))[0]
            values = [piece(*(env[n] for n in inputs))[0] for piece, env in zip(own, chunk.parents, strict=True)]
            rows = _rows(layer, x).double()
            rest = _outputs(layer, task.teacher.target(node.name, values)).double() - rows @ old
            if chunk.held:
                held.append((rows, rest))
            else:
                gram += rows.T @ rows
                cross += rows.T @ rest
        step = _best_step(gram, cross, held)
        if step is not None:
            _write(layer, old + step)


def _best_step(gram: Tensor, cross: Tensor, held: list[tuple[Tensor, Tensor]]) -> Tensor | None:
    """The change of the weights whose ridge does best on held-out rows; ``None`` if no change is better."""
    scale = gram.diagonal().mean()
    if not bool(scale > 0):
        return None
    best, least = None, sum(float(rest.square().sum()) for _, rest in held) if held else float("inf")
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    for ridge in RIDGES:
        step = torch.linalg.solve(gram + ridge * scale * identity, cross)
        error = sum(float((rest - rows @ step).square().sum()) for rows, rest in held)
        if error < least:
            best, least = step, error
    return best


def _matrix(layer: nn.Module) -> Tensor:
    """Weights as inputs x outputs, the bias as the last row."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    matrix = weight.detach().flatten(1).T.double()
    return matrix if layer.bias is None else torch.cat([matrix, layer.bias.detach()[None].double()])  # type: ignore[operator]  # a tensor


def _write(layer: nn.Module, matrix: Tensor) -> None:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if layer.bias is not None:
        assert isinstance(layer.bias, Tensor)
        layer.bias.copy_(matrix[-1])
        matrix = matrix[:-1]
    weight.copy_(matrix.T.reshape(weight.shape))


def _rows(layer: nn.Module, x: Tensor) -> Tensor:
    """A layer's inputs as rows: vectors, or patches in the order of the flattened kernel."""
    if isinstance(layer, nn.Linear):
        rows = x.flatten(0, -2)
    elif isinstance(layer, nn.Conv1d):
        two = x.unsqueeze(-2) if x.ndim == 3 else x[None].unsqueeze(-2)
        padding = layer.padding if isinstance(layer.padding, str) else (0, layer.padding[0])
        rows = _patches(two, (1, layer.kernel_size[0]), padding, (1, layer.dilation[0]), (1, layer.stride[0]))
    else:
        assert isinstance(layer, nn.Conv2d)
        four = x if x.ndim == 4 else x[None]
        rows = _patches(four, layer.kernel_size, layer.padding, layer.dilation, layer.stride)
    return rows if layer.bias is None else torch.cat([rows, rows.new_ones(len(rows), 1)], 1)


def _patches(x: Tensor, kernel, padding, dilation, stride) -> Tensor:  # type: ignore[no-untyped-def]  # torch's own tuples
    if padding == "same":
        total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        x = F.pad(x, [total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2])
        padding = (0, 0)
    elif padding == "valid":
        padding = (0, 0)
    return F.unfold(x, kernel, dilation, padding, stride).transpose(1, 2).flatten(0, 1)


def _outputs(layer: nn.Module, target: Tensor) -> Tensor:
    """A layer's outputs as rows, in the order of its inputs' rows."""
    if isinstance(layer, nn.Linear):
        return target.flatten(0, -2)
    batched = target if target.ndim == (4 if isinstance(layer, nn.Conv2d) else 3) else target[None]
    return batched.flatten(2).transpose(1, 2).flatten(0, 1)
