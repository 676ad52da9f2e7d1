"""Every tensor of a batch under the name that its owner would call it by."""

from __future__ import annotations

import inspect
from collections import UserDict
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch_geometric.data import HeteroData

from gnnstab.probe.replaying.replica import parts_of, tensors_in


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


def written(args: tuple[Any, ...], kwargs: Mapping[str, Any], model: nn.Module | None = None) -> dict[str, str]:
    """Name of `named_tensors` → how code in front of the forward writes a tensor that stands inside of something else.

    ``paper.x`` of a ``HeteroData`` is ``data["paper"].x``, that of a dict ``x_dict["paper"]``. A tensor that is an argument, or that a lone
    ``Data`` holds, goes by its name and has no entry.
    """
    called = forward_names(model) if model is not None else []
    alone = len(args) == 1 and not isinstance(args[0], Tensor)
    found: dict[str, str] = {}
    for position, value in enumerate(args):
        own = called[position] if position < len(called) else f"args[{position}]"
        name = (called[position] if position < len(called) else str(position)) if not alone else ""
        found.update(_inside(value, name, "data" if alone and isinstance(value, HeteroData) else own))
    for key, value in kwargs.items():
        found.update(_inside(value, str(key), str(key)))
    return {name: code for name, code in found.items() if "." in name or name != code.rpartition(".")[2]}


def _inside(value: Any, name: str, code: str, within: tuple[Any, ...] = ()) -> Iterator[tuple[str, str]]:
    if isinstance(value, Tensor):
        yield name, code
    elif not any(value is one for one in within):
        for own, item in parts_of(value):
            further = f"{name}.{own}" if name else own
            if isinstance(value, HeteroData) and isinstance(item, dict):
                stored = f"{code}[{_key(own.split('__') if own.count('__') == 2 else own)}]"
                yield from ((f"{further}.{k}", f"{stored}.{k}") for k, t in item.items() if isinstance(t, Tensor))
            elif isinstance(value, (dict, UserDict)):
                key = next((k for k in value if isinstance(k, tuple) and "__".join(map(str, k)) == own), own)
                yield from _inside(item, further, f"{code}[{_key(key)}]", (*within, value))
            else:
                part = f"[{own}]" if isinstance(value, (list, tuple)) else f".{own}"
                yield from _inside(item, further, f"{code}{part}", (*within, value))


def _key(key: Any) -> str:
    if isinstance(key, (list, tuple)):
        return ", ".join(map(_key, key))
    return f'"{key}"' if isinstance(key, str) and key.isidentifier() else repr(key)
