"""Inputs that are large, far from zero or tiny, as a suspect: a trial standardises them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gnnstab.probe.batches.arguments import Arguments
from gnnstab.probe.batches.named_tensors import named_tensors
from gnnstab.probe.batches.roles import deviating, is_target, standardised
from gnnstab.probe.optimizer._suspects import Suspect, listed
from gnnstab.probe.replaying.marks import mark_among
from gnnstab.probe.replaying.replica import mapped


class _Large(NamedTuple):
    tensor: Tensor
    scaled: Tensor
    mark: float | None
    """The number that stands for missing values in it; ``scaled`` holds the mean of the others of the column instead."""


def large_inputs(
    chosen: Mapping[str, bool], calls: Sequence[Arguments], model: nn.Module
) -> tuple[Suspect, dict[str, float]] | None:
    """Those of the ``chosen`` tensors of a batch that are, and the marks of missing values in them; None where none is.

    ``chosen``: name → True where a weight multiplies its whole numbers as they are.
    """
    found = {name: one for call in calls for name, one in _large(chosen, call, model).items()}
    if not found:
        return None

    def enter(module: nn.Module, args: Any, kwargs: Any) -> Any:
        made = {id(one.tensor): one.scaled for one in _large(chosen, (args, kwargs), model).values()}
        return tuple(mapped(part, lambda tensor: made.get(id(tensor), tensor)) for part in (args, kwargs))

    def undo(copy: nn.Module) -> None:
        copy.register_forward_pre_hook(enter, with_kwargs=True)

    names = listed(list(found))
    suspect = Suspect("feature-scale", tuple(found), f"standardising {names}", f"{names} is far from size 1", undo)
    return suspect, {name: one.mark for name, one in found.items() if one.mark is not None}


def _large(chosen: Mapping[str, bool], call: Arguments, model: nn.Module) -> dict[str, _Large]:
    found = {}
    for name, tensor in named_tensors(*call, model=model).items():
        table = (tensor[:, None] if tensor.dim() == 1 else tensor).detach()
        columns = deviating(table, whole=chosen[name], small=True) if name in chosen and not is_target(name) else None
        if columns is not None:
            table, mark = _filled(table, columns)
            found[name] = _Large(tensor, standardised(table, columns).reshape(tensor.shape), mark)
    return found


def _filled(table: Tensor, columns: Tensor) -> tuple[Tensor, float | None]:
    """The table, with the mean of the others of their column in entries of the ``columns`` that hold a mark of missing values; and the mark."""
    values = table[:, columns]
    found = mark_among(values)
    if found is None:
        return table, None
    marked, _ = found
    filled = table.clone()
    filled[:, columns] = torch.where(marked, values.masked_fill(marked, math.nan).nanmean(0).nan_to_num(), values)
    return filled, float(values[marked][0])
