"""Hooks of a model that are a part of what it computes: those that hand on another input or output than they got."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn

from gnnstab.errors import UsageError, let_through
from gnnstab.hook_code import LIBRARIES, computes
from gnnstab.probe.replaying.reach import FLAGS, SHARED, own_function, shared_with
from gnnstab.randomness import deep_copy

Hooked = tuple[dict[Any, Any], Any, Any]
"""A table of hooks of a copy, a key in it, and the hook of the model."""


def computing_hooks(module: nn.Module) -> dict[Any, Callable[..., Any]]:
    """Key → hook of those without which the module would compute something else."""
    tables = [(n, t) for n, t in vars(module).items() if isinstance(t, dict) and t and n.endswith("_hooks")]
    return {key: hook for name, table in tables for key, hook in table.items() if computes(hook, "forward" in name)}


def changes_input(module: nn.Module) -> bool:
    """True where a hook hands the module's forward something else than the module was called with."""
    return any(key in module._forward_pre_hooks for key in computing_hooks(module))


def foreign(hook: Any, table: str) -> bool:
    """True for a hook of the user's own code, in a table of those of a forward."""
    while isinstance(hook, functools.partial):
        hook = hook.func
    own = isinstance(hook, (types.FunctionType, types.MethodType)) and "_forward" in table and table.endswith("_hooks")
    return own and str(hook.__module__).partition(".")[0] not in LIBRARIES


def keep_notes(hooks: Iterable[Hooked], memo: dict[int, Any], model: nn.Module) -> Iterator[Hooked]:
    """Give the copy those of the hooks that write into what the model holds, and may read: a feature extractor, a tap.

    One that has something else in common with the run, or cannot be copied, is left out.
    """
    for own, key, hook in hooks:
        if any(id(owner) in memo for owner in _owners(hook) if type(owner) not in FLAGS):
            try:
                own[key] = own_hook(hook, memo, model)
            except Exception as error:
                let_through(error)
                continue
            yield own, key, hook


def _owners(hook: Any) -> list[Any]:
    """What a hook can write into: the object whose method it is, what hangs in its closure, what it was given beforehand."""
    if isinstance(hook, functools.partial):
        return [*_owners(hook.func), *hook.args, *hook.keywords.values()]
    if isinstance(hook, types.MethodType):
        return [hook.__self__, *_owners(hook.__func__)]
    return [value for cell in getattr(hook, "__closure__", None) or () for value in _content(cell)]


def _content(cell: types.CellType) -> list[Any]:
    try:
        return [cell.cell_contents]
    except ValueError:  # It is empty.
        return []


def own_hook(hook: Any, memo: dict[int, Any], model: nn.Module) -> Any:
    """A copy of a hook, with copies of what hangs in its closure, for a copy of ``model``, of which ``memo`` is full.

    Raises:
        UsageError: The copy has something in common with the run that a call may change.
    """
    if isinstance(hook, functools.partial):
        return functools.partial(
            own_hook(hook.func, memo, model), *deep_copy(hook.args, memo), **deep_copy(hook.keywords, memo)
        )
    own = own_function(hook, memo) if isinstance(hook, types.FunctionType) else deep_copy(hook, memo)
    functions = [value for value in memo.values() if isinstance(value, types.FunctionType)]
    if shared := shared_with(own, model, functions):
        name = getattr(hook, "__qualname__", type(hook).__name__)
        raise UsageError(f"the hook {name} changes what the model computes, and a copy of it shares {shared} {SHARED}")
    return own
