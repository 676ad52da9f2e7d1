"""Every tensor of a batch under the name that its owner would call it by."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from gnnstab.probe.replaying.replica import tensors_in


def named_tensors(
    args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None, model: nn.Module | None = None
) -> dict[str, Tensor]:
    """Name → tensor, of any shape and type, in the order of the arguments.

    A ``Data`` gives ``x``, ``edge_attr``, ``y``, …, a ``HeteroData`` ``paper.x`` and ``author__writes__paper.edge_index``, a
    nested container names joined by dots. A container that is the only positional argument gives no name of its own. Other
    positional arguments are called as the forward of ``model`` calls them, or by their number without one.

    Args:
        args: Positional arguments of a forward, or a batch in a tuple of one.
        kwargs: Keyword arguments.
        model: Whose forward names the positional arguments.
    """
    called = forward_names(model) if model is not None else []
    found: dict[str, Tensor] = {}
    alone = len(args) == 1 and not isinstance(args[0], Tensor)
    for position, value in enumerate(args):
        name = called[position] if position < len(called) else str(position)
        found.update(tensors_in(value, "" if alone else name))
    for name, value in (kwargs or {}).items():
        found.update(tensors_in(value, str(name)))
    return found


def forward_names(model: nn.Module, *more: Any) -> list[str]:
    """Names of the parameters of a forward that may be given by position, and of those of the kinds ``more``."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, *more)
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):  # A forward that is no Python function names no arguments.
        return []
    return [p.name for p in parameters if p.kind in kinds]
