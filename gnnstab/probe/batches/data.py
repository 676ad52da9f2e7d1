"""The data that people have, in the form that everything else works with: one batch, or a list of them."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch_geometric.data.data import BaseData

MOST_BATCHES = 16
"""Of a loader, which may have no end; a list is taken whole, and run in part where it is long (`chosen`)."""

_ONE = (BaseData, Tensor, Mapping, tuple, str, bytes)


def taken(batch: Any, model: nn.Module) -> Any:
    """One batch as it is, several as a list that can be gone through again with the same content.

    A loader that shuffles gives other batches every time it is asked; it is asked once, for its first `MOST_BATCHES`. A list of what
    one call takes, as PyTorch's own collation makes it, becomes a tuple: ``[Data, labels]``, ``[x, edge_index]``.
    """
    if isinstance(batch, _ONE) or not isinstance(batch, Iterable):
        return batch
    if isinstance(batch, Sequence):
        if _is_one(batch, model):
            return tuple(batch)
        found = list(batch)
    else:
        found = list(itertools.islice(batch, MOST_BATCHES))
    several = [tuple(item) if isinstance(item, list) and _is_one(item, model) else item for item in found]
    return several[0] if len(several) == 1 else several


def fitting(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], model: nn.Module
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments that the forward takes: labels behind them, and entries of other names, are for the loss."""
    parameters = inspect.signature(model.forward).parameters.values()
    kinds = {p.kind for p in parameters}
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        most = sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
        # ``(x, edge_index)`` for a forward of one argument is a mistake, and the model's own message says so; ``(x, y)`` is none.
        args = args[:most] if most > 1 or not any(map(_are_edges, args[1:])) else args
    if inspect.Parameter.VAR_KEYWORD in kinds:
        return args, dict(kwargs)
    names = {p.name for p in parameters}
    known = {name: value for name, value in kwargs.items() if name in names}
    # Where none fits, the model's own message says more than a call without arguments.
    return args, known or dict(kwargs)


def _are_edges(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 2 and len(value) == 2 and not value.is_floating_point()


def _is_one(items: Sequence[Any], model: nn.Module) -> bool:
    """True for a list that holds the parts of one batch."""
    if len(items) < 2:
        return False
    if isinstance(items[0], BaseData):
        return not any(isinstance(item, BaseData) for item in items[1:])
    return all(isinstance(item, Tensor) for item in items) and _needed(model) > 1


def _needed(model: nn.Module) -> int:
    parameters = inspect.signature(model.forward).parameters.values()
    return sum(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
