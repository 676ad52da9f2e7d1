"""Which of torch's functions add values up within groups that an index names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

_ADDS = frozenset({torch.index_add, Tensor.index_add, Tensor.index_add_})
_SCATTERS = frozenset(
    {
        *(torch.scatter_add, Tensor.scatter_add, Tensor.scatter_add_),
        *(torch.scatter_reduce, Tensor.scatter_reduce, Tensor.scatter_reduce_),
    }
)
_PUTS = frozenset({torch.index_put, Tensor.index_put, Tensor.index_put_})
GROUP_SUMS = _ADDS | _SCATTERS | _PUTS


class GroupSum(NamedTuple):
    """Values (…, E, …) that were summed into groups along one axis."""

    values: Tensor
    axis: int
    groups: Tensor
    """(E,) group of every value."""

    size: int
    """How many groups there are."""


def group_sum(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> GroupSum | None:
    """What a call of one of `GROUP_SUMS` summed; None where it did no sum, or by an index of more than one axis."""
    if func in _PUTS:
        into, indices, values, *more = (*args, *(kwargs[k] for k in ("indices", "values") if k in kwargs))
        adds = more[0] if more else kwargs.get("accumulate", False)
        return GroupSum(values, 0, indices[0], len(into)) if adds and len(indices) == 1 else None
    names = ("dim", "index", "source" if func in _ADDS else "src", "reduce")
    given = dict(zip(names, args[1:], strict=False)) | dict(kwargs)
    if given.get("reduce", "sum") != "sum":
        return None
    axis = given["dim"] % output.dim()
    return GroupSum(given[names[2]], axis, along(given["index"], axis), output.shape[axis])


def along(index: Tensor, axis: int) -> Tensor:
    """(E,) the index along one axis, of one that was expanded to the shape of what it sorts."""
    return index if index.dim() == 1 else index.movedim(axis, 0).flatten(1)[:, 0]
