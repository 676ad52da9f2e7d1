"""Twins of functions that call a softmax over edges, which note what it is given and returns, and run the same code."""

from __future__ import annotations

import dis
import inspect
import types
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gnnstab.probe.attaching._softmax_calls import (
    calls_edge_softmax,
    edge_softmax,
    helper,
    imported,
    named,
    softmax_within,
)


class Untappable(Exception):
    """The layer offers no place to look; the text says why."""


Rest = tuple[Mapping[str, Any], str, Any]
"""A name, where it stands, and what it meant when a twin was made."""

Code = tuple[types.FunctionType, types.CodeType, tuple[Any, ...] | None]
"""A function with the code and the defaults that its twin has."""


class Notes(NamedTuple):
    """What a twin tells, and what it rests on."""

    notice: Callable[..., None]
    rests: list[Rest]
    runs: list[Code]


def _globals(module: dict[str, Any], replaced: dict[str, Any]) -> dict[str, Any]:
    """Some names of a module replaced, all others looked up in the module itself at the time of the call."""
    # The lookup is the dictionary's own method, so that a missing name costs no call of a Python function.
    kind = type("_Globals", (dict,), {"__missing__": staticmethod(module.__getitem__)})
    found: dict[str, Any] = kind(replaced)
    return found


def observed(function: types.FunctionType, owner: nn.Module, method: str, notes: Notes) -> types.FunctionType:
    """A twin of ``function`` to which ``softmax`` means the wrapper that notes."""
    code = function.__code__
    if any(instruction.opname in ("STORE_GLOBAL", "DELETE_GLOBAL") for instruction in dis.get_instructions(code)):
        raise Untappable(f"{function.__qualname__} assigns a global variable")
    notes.runs.append((function, code, function.__defaults__))
    replaced: dict[str, Any] = {}
    for name, value in named(function):
        if (seen := _seen(value, code.co_names, owner, notes)) is not None:
            replaced[name] = seen
            notes.rests.append((function.__globals__, name, value))
    if "super" in code.co_names and "super" not in function.__globals__:
        parent = _parent(function, owner, method, notes)
        if parent is not None:
            replaced["super"] = parent
    spaces = {id(m): seen for m in imported(function) if (seen := _seen(m, code.co_names, owner, notes)) is not None}
    if spaces:
        own: dict[str, Any] = attrgetter("__builtins__")(function)
        replaced["__builtins__"] = {**own, "__import__": _importing(own["__import__"], spaces)}
    closure = function.__closure__
    if not replaced:
        closure = _within(function, method, owner, notes)
    if not replaced and closure is None:
        raise Untappable(f"{function.__qualname__} calls no softmax over edges by a global name")
    twin = types.FunctionType(
        code, _globals(function.__globals__, replaced), function.__name__, function.__defaults__, closure
    )
    twin.__kwdefaults__ = function.__kwdefaults__
    return twin


def _importing(own: Callable[..., Any], spaces: Mapping[int, Any]) -> Callable[..., Any]:
    """What an ``import`` within a function calls, which gives those modules with the softmax that notes."""

    def importing(*args: Any, **kwargs: Any) -> Any:
        module = own(*args, **kwargs)
        return spaces.get(id(module), module)

    return importing


def _seen(value: Any, names: tuple[str, ...], owner: nn.Module, notes: Notes, further: bool = True) -> Any:
    """What a global of an observed function is replaced with; None for one that has nothing to do with softmax."""
    if edge_softmax(value):
        return _noting(value, notes.notice)
    if isinstance(value, types.ModuleType) and softmax_within(value, names):
        replaced: dict[str, Any] = {}
        for name in names:
            found = getattr(value, name, None)
            # ``torch_geometric.utils.softmax`` is two steps away; packages refer to each other in circles.
            near = edge_softmax(found) or (further and isinstance(found, types.ModuleType) and found is not value)
            if near and (seen := _seen(found, names, owner, notes, False)) is not None:
                replaced[name] = seen
                notes.rests.append((vars(value), name, found))
        return _Space(value, replaced)
    if helper(value) and calls_edge_softmax(value):
        return observed(value, owner, value.__name__, notes)
    return None


def _noting(original: Any, notice: Callable[..., None]) -> Callable[..., Tensor]:
    first, second = list(inspect.signature(original).parameters)[:2]

    def softmax(*args: Any, **kwargs: Any) -> Tensor:
        out: Tensor = original(*args, **kwargs)
        src = args[0] if args else kwargs[first]
        index = args[1] if len(args) > 1 else kwargs.get(second)
        ptr = args[2] if len(args) > 2 else kwargs.get("ptr")
        size = args[3] if len(args) > 3 else kwargs.get("num_nodes")
        if index is None and ptr is not None:
            size, index = len(ptr) - 1, _spread(ptr, len(src))
        notice(src, out, index, size)
        return out

    return softmax


def _spread(ptr: Tensor, rows: int) -> Tensor:
    """(E,) group of every row, from where the groups begin."""
    groups = torch.arange(len(ptr) - 1, device=ptr.device)
    return groups.repeat_interleave(ptr.diff(), output_size=rows)


def _within(function: types.FunctionType, method: str, owner: nn.Module, notes: Notes) -> Any:
    """What a decorated function closes over, with the observed twin in the place of the function that was decorated."""
    inner = getattr(function, "__wrapped__", None)
    cells = function.__closure__ or ()
    if not isinstance(inner, types.FunctionType) or not any(cell.cell_contents is inner for cell in cells):
        return None
    twin = observed(inner, owner, method, notes)
    return tuple(types.CellType(twin) if cell.cell_contents is inner else cell for cell in cells)


def _parent(function: types.FunctionType, owner: nn.Module, method: str, notes: Notes) -> Callable[..., Any] | None:
    """A ``super`` for ``function`` whose method of that name is the observed twin of the parent's; None when it has none."""
    mro = type(owner).__mro__
    home = next((cls for cls in mro if cls.__dict__.get(method) is function), None)
    if home is None:
        return None
    parent = next((c for c in mro[mro.index(home) + 1 :] if method in c.__dict__), None)
    above = None if parent is None else parent.__dict__[method]
    if parent is None or not isinstance(above, types.FunctionType):
        return None
    notes.rests.append((parent.__dict__, method, above))
    try:
        twin = observed(above, owner, method, notes)
    except Untappable:
        return None
    stand_in = _Above(super(home, owner), method, types.MethodType(twin, owner))
    return lambda *args: stand_in if not args or args == (home, owner) else super(*args)


class _Space(types.ModuleType):
    """A module that somebody's code names, but for what is ``replaced``; everything else is the module's own, whenever it is asked for."""

    def __init__(self, real: types.ModuleType, replaced: dict[str, Any]) -> None:
        super().__init__(real.__name__)
        vars(self).clear()
        vars(self).update(replaced)
        vars(self)["_real"] = real

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_real"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._real, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._real, name)


class _Above:
    """What ``super()`` returns to an observed function: the real one, except for one method."""

    def __init__(self, real: Any, method: str, observed: Callable[..., Any]) -> None:
        self._real = real
        self.__dict__[method] = observed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)
