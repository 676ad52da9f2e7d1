"""What the code of a hook does: whether it may hand on something else than it got."""

from __future__ import annotations

import dis
import functools
import inspect
import types
from itertools import pairwise
from typing import Any

_COMPUTE = ("torch.nn.utils.", "gnnstab.nn.", "gnnstab.probe.replaying.evaluating")
"""Modules whose hooks, all objects of a class, compute: ``weight_norm``, ``spectral_norm``, pruning, the fixes."""

LIBRARIES = ("torch", "torch_geometric", "gnnstab")

_SILENT = frozenset(
    {"append", "extend", "insert", "update", "__setitem__", "setattr", "put", "write"}
    | {"print", "info", "debug", "warning"}
)
"""What a lambda calls that only notes something: each of these returns nothing that a module could hand on."""


def computes(hook: Any, forward: bool) -> bool:
    """True for a hook, ``forward``: of a forward, without which a module would compute something else."""
    kind = hook if isinstance(hook, types.FunctionType) else type(hook)
    if kind.__module__.startswith(_COMPUTE):
        return True
    while isinstance(hook, functools.partial):
        hook = hook.func
    if hasattr(hook, "forward"):
        hook = hook.forward
    elif not isinstance(hook, (types.FunctionType, types.MethodType)):
        hook = type(hook).__call__
    function = inspect.unwrap(getattr(hook, "__func__", hook))
    if not forward or not isinstance(function, types.FunctionType):
        return False
    return function.__module__.partition(".")[0] not in LIBRARIES and _returns(function.__code__)


@functools.lru_cache(1024)
def _returns(code: types.CodeType) -> bool:
    """True where the code may return something: anything but None, and not what a lambda calls to take a note."""
    if code.co_name == "<lambda>" and not _SILENT.isdisjoint(code.co_names):
        return False
    steps = list(dis.get_instructions(code))
    pairs = [(before, one) for before, one in pairwise(steps) if one.opname.startswith("RETURN_")]
    returned = [one if one.opname == "RETURN_CONST" else before for before, one in pairs]
    return any(not (one.opname in ("LOAD_CONST", "RETURN_CONST") and one.argval is None) for one in returned)
