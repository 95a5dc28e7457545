"""Operators on square matrices as wholes, by what they do to ``P A Q'`` with permutations ``P`` and ``Q``.

The inverse turns them over, ``(P A Q')^-1 = Q A^-1 P'``. Powers, the exponential, the determinant and the trace are the
same in every basis: there both sides must have one order. A parameter keeps its order: these functions of it could be
permuted, but not merged.
"""

import torch

from fxfuse.passes.algebra import free_of, unify, unify_all
from fxfuse.passes.axis_rules.core import Call, axis_rule, disown_but
from fxfuse.passes.axis_rules.pointwise import broadcast
from fxfuse.passes.variables import Dims, expand, fresh, pin, size_of, tell_apart


@axis_rule("linalg_inv", "inverse", "linalg_inv_ex", "linalg_pinv")
def inverse(call: Call) -> Dims | list[Dims]:
    """Rows become columns; so with the pseudo-inverse of any matrix. Of one that is said to be symmetric only one half
    is read."""
    *batch, rows, columns = _matrices(call)
    for dim in (rows, columns) if call.named("hermitian", False) else ():
        pin(dim)
    for tolerance in call.tensors()[1:]:
        unify_all(zip(batch[::-1], call.of(tolerance)[::-1], strict=False))
    out = [*(expand(dim) for dim in batch), expand(columns), expand(rows)]
    return [out, out[:-2]] if isinstance(call.result, tuple | list) else out


@axis_rule("linalg_solve", "linalg_solve_ex", "_linalg_solve_ex")
def solve(call: Call) -> Dims | list[Dims]:
    """``A^-1 B``, or ``B A^-1``: what meets the rows of one side comes out as the columns of the other."""
    *batch, rows, columns = _matrices(call)
    b, left = call.dims(1), call.named("left", True)
    vector = call.args[1].ndim == 1 or (len(batch) + 1 == len(b) and call.args[1].shape == call.args[0].shape[:-1])
    at = -1 if vector or not left else -2
    met, out = (rows, columns) if left else (columns, rows)
    other = b[: -1 if vector else -2]
    unify_all([*zip(batch[::-1], other[::-1], strict=False), (met, b[at])])
    shared = {f.var for dim in batch for f in expand(dim)}
    disown_but(met, shared)
    disown_but(out, shared)
    result = [*broadcast([batch, other]), *([] if vector else b[-2:])]
    if vector:
        result.append(out)
    else:
        result[at] = out
    free_of([*result[: len(result) + at], *result[len(result) + at + 1 :]], [met])
    if not isinstance(call.result, tuple | list):
        return [expand(dim) for dim in result]
    for k in range(1, len(call.result)):
        call.points[k] = [rows, columns]  # the factors depend on the order; hardly anybody reads them
    return [
        [expand(dim) for dim in result],
        *([fresh(n, pinned=True) for n in call.result[k].shape] for k in range(1, len(call.result))),
    ]


@axis_rule("linalg_solve_triangular", "cholesky_solve")
def solve_triangle(call: Call) -> Dims:
    """``A^-1 B``, or ``B A^-1``, with ``A`` a triangle, or ``L L'``: it keeps its order, and so does the side of ``B``
    that meets it. The other side goes along."""
    product = call.function._schema.name == "aten::cholesky_solve"
    *batch, rows, columns = call.dims(1 if product else 0)
    *others, first, second = call.dims(0 if product else 1)
    met, kept = (first, second) if call.named("left", True) else (second, first)
    for dim in (rows, columns, met):
        pin(dim)
    free_of([*batch, *others, kept], [rows, columns, met])
    lead = broadcast([batch, others])
    free_of([kept], [met])
    return [*lead, expand(first), expand(second)]


@axis_rule("linalg_matrix_exp", "matrix_exp", "matrix_power", "linalg_matrix_power")
def function_of_matrix(call: Call) -> Dims:
    """A power series in the matrix."""
    *batch, rows, columns = _matrices(call)
    unify(rows, columns)
    tell_apart(rows)
    return [*(expand(dim) for dim in batch), expand(rows), expand(columns)]


@axis_rule("linalg_det", "det", "logdet", "linalg_slogdet", "slogdet", "trace")
def invariant(call: Call) -> Dims | list[Dims]:
    """A number for each matrix; another order of one side alone would turn its sign, or change it."""
    *batch, rows, columns = _matrices(call)
    if size_of(rows) != size_of(columns):  # the trace of a rectangle ends at its corner
        pin([*rows, *columns])
    unify(rows, columns)
    out = [expand(dim) for dim in batch]
    return [out for _ in call.result] if isinstance(call.result, tuple | list) else out


@axis_rule("_linalg_svd", "linalg_svd")
def singular_values(call: Call) -> list[Dims]:
    """They are the same whatever the order of rows and columns; the vectors' signs are not, for whoever reads them."""
    *batch, rows, columns = _matrices(call)
    for k in (0, 2):
        call.points[k] = [rows, columns]
    return [
        [*(expand(dim) for dim in batch), *(fresh(n, pinned=True) for n in tensor.shape[len(batch) :])]
        for tensor in call.result
    ]


@axis_rule(
    "linalg_qr", "linalg_cholesky", "linalg_cholesky_ex", "_linalg_eigh", "linalg_eigh", "linalg_eig",
    "linalg_eigvals", "linalg_lu_factor_ex", "linalg_lu", "linalg_ldl_factor_ex", "cholesky_inverse", "geqrf",
)  # fmt: skip
def factors(call: Call) -> Dims | list[Dims]:
    """Triangles, and what is found column by column, depend on the order of both sides (of a square that is said to be
    symmetric only one half is read)."""
    *batch, rows, columns = _matrices(call)
    pin(rows)
    pin(columns)

    def out(shape: torch.Size) -> Dims:
        return [*(expand(dim) for dim in batch), *(fresh(n, pinned=True) for n in shape[len(batch) :])]

    if isinstance(call.result, tuple | list):
        return [out(tensor.shape) for tensor in call.result]
    return out(call.result.shape)


def _matrices(call: Call) -> Dims:
    """The operand's dimensions. Every element of the result depends on all rows and all columns."""
    *batch, rows, columns = x = call.dims(0)
    for dim in x if call.meaning(call.args[0]).stored else ():
        pin(dim)
    free_of([*batch, columns], [rows])
    free_of([*batch, rows], [columns])
    return x
