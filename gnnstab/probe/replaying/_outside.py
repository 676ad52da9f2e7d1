"""Numbers and containers of plain Python that a function keeps outside of itself: a call on copies puts them back."""

from __future__ import annotations

import dis
import functools
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from gnnstab.probe.replaying.reach import LARGEST_COPIED, contents, is_own_object, of_library

_MISSING = object()

_MOST = 2**20
"""Entries of a container up to which a copy of it is kept."""

_TABLES = (dict, OrderedDict, defaultdict)
_LISTS = (list, deque, set, bytearray)


class Outside:
    """What the functions, objects and classes of the user's own keep by now.

    Cells, globals and attributes count where code among them assigns them; containers and arrays where they hang in a cell, a global or an attribute.
    """

    def __init__(self, found: Iterable[Any]) -> None:
        self._back: list[Callable[[], None]] = []
        self._seen: set[int] = set()
        parts = list(found)
        functions = [f for f in parts if isinstance(f, types.FunctionType) and not of_library(f)]
        written = frozenset[str]().union(*(_assigned(f.__code__)[1] for f in functions))
        for function in functions:
            self._function(function)
        for value in parts:
            if isinstance(value, type) and not of_library(value):
                for name in written & vars(value).keys():
                    self._back.append(functools.partial(_set_attribute, value, name, vars(value)[name]))
                self._containers(list(vars(value).values()))
            elif is_own_object(value):
                for name in written:
                    self._back.append(functools.partial(_set_item, vars(value), name, vars(value).get(name, _MISSING)))
                self._containers(list(vars(value).values()))

    def put_back(self) -> None:
        """Everything that is not as it was is as it was again."""
        for back in self._back:
            back()

    def _function(self, function: types.FunctionType) -> None:
        (made, _), names = _assigned(function.__code__), set(function.__code__.co_names)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
            held = contents(cell)
            if name in made and held:
                self._back.append(functools.partial(_set_cell, cell, held[0]))
            self._containers(held)
        for name in made & function.__globals__.keys():
            self._back.append(functools.partial(_set_item, function.__globals__, name, function.__globals__[name]))
        self._containers([function.__globals__[name] for name in names & function.__globals__.keys()])

    def _containers(self, values: list[Any]) -> None:
        while values:
            value = values.pop()
            if id(value) in self._seen:
                continue
            if isinstance(value, np.ndarray) and value.dtype != object and value.nbytes <= LARGEST_COPIED:
                self._back.append(functools.partial(_set_array, value, value.copy()))
            elif type(value) in (*_TABLES, *_LISTS) and len(value) <= _MOST:
                self._back.append(functools.partial(_set_container, value, value.copy()))
                values += value.values() if isinstance(value, dict) else [] if type(value) is bytearray else value
            else:
                continue
            self._seen.add(id(value))


@functools.lru_cache(maxsize=256)
def _assigned(code: types.CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """Names of cells and globals that code assigns, and of attributes; also in the functions that it makes."""
    names, attributes = set[str](), set[str]()
    for step in _steps(code):
        if step.opname in ("STORE_DEREF", "STORE_GLOBAL", "DELETE_GLOBAL"):
            names.add(step.argval)
        elif step.opname == "STORE_ATTR":
            attributes.add(step.argval)
    return frozenset(names), frozenset(attributes)


def _steps(code: types.CodeType) -> Iterator[dis.Instruction]:
    yield from dis.get_instructions(code)
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _steps(inner)


def _set_cell(cell: types.CellType, value: Any) -> None:
    if (held := contents(cell)) and held[0] is not value:
        cell.cell_contents = value


def _set_item(table: dict[str, Any], name: str, value: Any) -> None:
    if value is _MISSING:
        table.pop(name, None)
    elif table.get(name, _MISSING) is not value:
        table[name] = value


def _set_attribute(owner: type, name: str, value: Any) -> None:
    if vars(owner).get(name, _MISSING) is not value:
        setattr(owner, name, value)


def _set_array(array: np.ndarray[Any, Any], values: np.ndarray[Any, Any]) -> None:
    if array.shape == values.shape and array.tobytes() != values.tobytes() and array.flags.writeable:
        array[...] = values


def _set_container(container: Any, copy: Any) -> None:
    if len(container) == len(copy) and all(map(_same, _entries(container), _entries(copy))):
        return
    container.clear()
    (container.update if isinstance(container, (dict, set)) else container.extend)(copy)


def _entries(container: Any) -> Iterable[Any]:
    return container.items() if isinstance(container, dict) else container


def _same(one: Any, other: Any) -> bool:
    """True of the same objects; for the entries of a dict both key and value."""
    if type(one) is tuple and type(other) is tuple and len(one) == len(other) == 2:
        return one[0] is other[0] and one[1] is other[1]
    return one is other
