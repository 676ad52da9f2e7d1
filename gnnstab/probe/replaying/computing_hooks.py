"""Hooks of a model that are a part of what it computes: those that hand on another input or output than they got."""

from __future__ import annotations

import dis
import functools
import inspect
import types
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from gnnstab.errors import UsageError
from gnnstab.probe.replaying.reach import SHARED, shared_with
from gnnstab.randomness import deep_copy
from gnnstab.torch_private import tree_leaves

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
    tables = [(n, t) for n, t in vars(module).items() if n.endswith("_hooks") and isinstance(t, dict)]
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
    if not isinstance(hook, types.FunctionType):
        return _apart(deep_copy(hook, memo), hook, model)
    cells = [_contents(cell) for cell in hook.__closure__ or ()]
    own = [[_without_history(v, memo, model) for v in values] for values in cells]
    _apart(_with_cells(hook, [[]] * len(cells)), hook, model)
    _apart([v for values in own for v in values if not isinstance(v, types.FunctionType)], hook, model)
    return _with_cells(hook, own)


def _without_history(value: Any, memo: dict[int, Any], model: nn.Module) -> Any:
    kept = [t for t in tree_leaves(value) if isinstance(t, Tensor) and t.grad_fn is not None]
    memo.update({id(t): t.detach().clone() for t in kept})  # One that hangs in its graph refuses to be copied.
    return own_hook(value, memo, model) if isinstance(value, types.FunctionType) else deep_copy(value, memo)


def _with_cells(hook: types.FunctionType, cells: list[list[Any]]) -> types.FunctionType:
    closure = tuple(types.CellType(*values) for values in cells)
    twin = types.FunctionType(hook.__code__, hook.__globals__, hook.__name__, hook.__defaults__, closure)
    twin.__kwdefaults__ = hook.__kwdefaults__
    return twin


def _apart(own: Any, hook: Any, model: nn.Module) -> Any:
    if shared := shared_with(own, model):
        name = getattr(hook, "__qualname__", type(hook).__name__)
        raise UsageError(f"the hook {name} changes what the model computes, and a copy of it shares {shared} {SHARED}")
    return own


def _contents(cell: types.CellType) -> list[Any]:
    try:
        return [cell.cell_contents]
    except ValueError:  # Not filled yet.
        return []


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
