"""Shapes and types of all values of a program, from one run on meta tensors (or a real one where that fails)."""

from typing import Any

import torch
from torch import Tensor, fx

from fxfuse.passes.abstract import on_meta
from fxfuse.types import Program


class _Shapes(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: dict[str, tuple[int, ...] | None] = {}
        self.types: dict[str, torch.dtype] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.found[n.name] = tuple(result.shape)
            self.types[n.name] = result.dtype
        elif isinstance(result, tuple | list) and any(isinstance(r, Tensor) for r in result):
            self.found[n.name] = None
        return result


def meta_shapes(program: Program) -> dict[str, tuple[int, ...] | None]:
    """The shapes as in :func:`value_shapes`, without computing anything; raises what an operator raises."""
    return _on_meta(program).found


def value_shapes(program: Program) -> dict[str, tuple[int, ...] | None]:
    """The shape of every node that yields a tensor, ``None`` for a node that yields several; others are left out."""
    return _recorded(program).found


def value_types(program: Program) -> dict[str, torch.dtype]:
    """The type of every node that yields a tensor; others are left out."""
    return _recorded(program).types


def _recorded(program: Program) -> _Shapes:
    try:
        return _on_meta(program)
    except Exception:  # an operator without a meta kernel: run it for real, and let that raise
        recorder = _Shapes(program.module)
        with torch.inference_mode():
            recorder.run(*program.example)
        return recorder


def _on_meta(program: Program) -> _Shapes:
    recorder = _Shapes(on_meta(program.module))
    with torch.inference_mode():
        recorder.run(*(torch.empty_like(x, device="meta") for x in program.example))
    return recorder
