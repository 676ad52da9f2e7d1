"""Hooks of a model that are a part of what it computes: those that hand on another input or output than they got."""

from __future__ import annotations

import dis
import functools
import inspect
import types
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from torch import nn

from gnnstab.errors import UsageError
from gnnstab.probe.replaying.reach import SHARED, own_function, shared_with
from gnnstab.randomness import deep_copy

_COMPUTE = ("torch.nn.utils.", "gnnstab.nn.", "gnnstab.probe.replaying.evaluating")
"""Modules whose hooks, all objects of a class, compute: ``weight_norm``, ``spectral_norm``, pruning, the fixes."""

_LIBRARIES = ("torch", "torch_geometric", "gnnstab")

_SILENT = frozenset(
    {"append", "extend", "insert", "update", "__setitem__", "setattr", "put", "write"}
    | {"print", "info", "debug", "warning"}
)
"""What a lambda calls that only notes something: each of these returns nothing that a module could hand on."""


def computing_hooks(module: nn.Module) -> dict[Any, Callable[..., Any]]:
    """Key → hook of those without which the module would compute something else."""
    tables = [(n, t) for n, t in vars(module).items() if isinstance(t, dict) and t and n.endswith("_hooks")]
    return {key: hook for name, table in tables for key, hook in table.items() if _computes(hook, "forward" in name)}


def changes_input(module: nn.Module) -> bool:
    """True where a hook hands the module's forward something else than the module was called with."""
    return any(key in module._forward_pre_hooks for key in computing_hooks(module))


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


def _computes(hook: Any, forward: bool) -> bool:
    kind = hook if isinstance(hook, types.FunctionType) else type(hook)
    if kind.__module__.startswith(_COMPUTE):
        return True
    while isinstance(hook, functools.partial):
        hook = hook.func
    if isinstance(hook, nn.Module):
        hook = hook.forward
    elif not isinstance(hook, (types.FunctionType, types.MethodType)):
        hook = type(hook).__call__
    function = inspect.unwrap(getattr(hook, "__func__", hook))
    if not forward or not isinstance(function, types.FunctionType):
        return False
    return function.__module__.partition(".")[0] not in _LIBRARIES and _returns(function.__code__)


@functools.lru_cache(1024)
def _returns(code: types.CodeType) -> bool:
    """True where the code may return something: anything but None, and not what a lambda calls to take a note."""
    if code.co_name == "<lambda>" and not _SILENT.isdisjoint(code.co_names):
        return False
    steps = list(dis.get_instructions(code))
    pairs = [(before, one) for before, one in pairwise(steps) if one.opname.startswith("RETURN_")]
    returned = [one if one.opname == "RETURN_CONST" else before for before, one in pairs]
    return any(not (one.opname in ("LOAD_CONST", "RETURN_CONST") and one.argval is None) for one in returned)
