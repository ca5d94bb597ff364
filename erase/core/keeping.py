"""Changes of weights that leave what they make of some inputs as it was."""

import torch
from torch import Tensor

RIDGE = 1e-12  # of what is kept a row then makes 5e-7 of its own length at most
AT_ONCE = 1 << 22  # numbers in float64


def without(change: Tensor, basis: Tensor, mask: Tensor | None = None) -> Tensor:
    """The nearest change D [o, d] of a weight with D U = 0, of an orthonormal U [d, k].

    Under a mask [o, d], outside of which the change is 0, every row has a plane of its own, and
    loses U_m (U_m^T U_m + RIDGE)^-1 U_m^T D, U_m being the rows of U that its mask keeps.
    """
    if mask is None:
        return change - change @ basis @ basis.T
    rows = max(1, AT_ONCE // basis.numel())
    parts = zip(change.split(rows), mask.split(rows), strict=True)
    return torch.cat([_each_without(part, kept[..., None] * basis) for part, kept in parts])


def _each_without(rows: Tensor, bases: Tensor) -> Tensor:
    """The same of rows [n, d], each with a basis [d, k] of its own, which need not be one."""
    gram = bases.mT @ bases
    gram.diagonal(dim1=1, dim2=2).add_(RIDGE)
    read = bases.mT @ rows[..., None]
    return rows - (bases @ torch.cholesky_solve(read, torch.linalg.cholesky(gram)))[..., 0]
