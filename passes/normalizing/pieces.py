"""Pieces of tuples, made ready for being written in place.

What an operator returns as a tuple is read piece by piece: by index, by a field's name, out of a slice of the tuple.
Here every piece becomes one node. Pieces that are views of the operator's input (of ``split``, ``chunk``, ``unbind``)
become slices of that input, wherever the operator is followed by a write; pieces of other operators own their memory.
"""

import operator
from typing import Any

import torch
from torch import Tensor, fx

from fxfuse.errors import GraphError
from fxfuse.passes.graphs import WHERE, target_name
from fxfuse.passes.probing import PROBE, Editor


def join_pieces(module: fx.GraphModule) -> None:
    """Read every piece of a tuple of tensors once, by its index; who reads the tuple as a whole reads all of them."""
    edit = Editor(module)
    for node in list(module.graph.nodes):
        if node.op != "output" and _is_tuple(*node.meta[PROBE]) and not _is_slice(node):
            readers = list(node.users)
            with edit.at(node, after=True):
                pieces = [edit.call(operator.getitem, node, place) for place in range(len(node.meta[PROBE][0]))]
            _read(node, readers, pieces)
            for piece in pieces:
                if not piece.users:
                    module.graph.erase_node(piece)


def _read(node: fx.Node, readers: list[fx.Node], pieces: list[fx.Node]) -> None:
    """Let ``readers`` of ``node``, which is made of ``pieces``, read those."""
    for user in readers:
        which: Any = user.args[1] if len(user.args) > 1 else None
        if _is_slice(user):
            _read(user, list(user.users), pieces[which])
        elif user.target is operator.getitem:
            user.replace_all_uses_with(pieces[which])
        elif user.target is getattr:
            value = node.meta[PROBE][0]
            field = getattr(value, which)
            user.replace_all_uses_with(pieces[next(i for i, x in enumerate(value) if x is field)])
        else:
            user.args, user.kwargs = fx.map_arg((user.args, user.kwargs), lambda n: pieces if n is node else n)
            continue
        user.graph.erase_node(user)


def _is_tuple(one: Any, other: Any) -> bool:
    """Whether a value is a tuple of tensors, as many at every batch size."""
    both = isinstance(one, tuple | list) and len(one) == len(other)
    return both and all(isinstance(x, Tensor) for x in one)


def _is_slice(node: fx.Node) -> bool:
    return node.target is operator.getitem and isinstance(node.args[1], slice)


def as_slice(edit: Editor, piece: fx.Node, base: fx.Node) -> fx.Node:
    """A node for what ``piece`` is, as a slice of ``base``, whose memory it shares; made at the place of ``piece``.

    Raises :class:`GraphError` where it is no slice along one dimension, or where it depends on the batch size.
    """
    views = [_slice_of(part, whole) for part, whole in zip(piece.meta[PROBE], base.meta[PROBE], strict=True)]
    if views[0] is None or views[0] != views[1]:
        what = target_name(piece.args[0]) if isinstance(piece.args[0], fx.Node) else str(piece.target)
        raise GraphError(
            f"a piece made by {what} at {piece.meta.get(WHERE, '?')} is written in place, and where it lies is not "
            "known for every batch size; rewrite the line without writing in place"
        )
    dim, start, length = views[0]
    with edit.at(piece):
        if length is None:
            return edit.call(torch.select, base, dim, start)
        return edit.call(torch.narrow, base, dim, start, length)


def _slice_of(part: Any, whole: Any) -> tuple[int, int, int | None] | None:
    """Dimension, start and length (``None``: that dimension is gone) of a view, read off its strides."""
    if not isinstance(part, Tensor):
        return None
    offset = part.storage_offset() - whole.storage_offset()
    shape, strides = list(whole.shape), list(whole.stride())
    have = list(zip(part.shape, part.stride(), strict=True))
    for dim in reversed(range(len(shape))):
        start = offset // max(1, strides[dim])
        if start * strides[dim] != offset:
            continue
        before, after = list(zip(shape, strides, strict=True))[:dim], list(zip(shape, strides, strict=True))[dim + 1 :]
        if have == before + after and start < shape[dim]:
            return dim, start, None
        length = part.shape[dim] if part.dim() == len(shape) else 0
        if have == [*before, (length, strides[dim]), *after] and start + length <= shape[dim]:
            return dim, start, length
    return None
