"""What functions keep outside of themselves, in numbers, containers, arrays and tensors: a call on copies puts it back."""

from __future__ import annotations

import array
import ctypes
import dis
import functools
import mmap
import os
import sys
import threading
import types
import weakref
from collections import ChainMap, OrderedDict, UserDict, UserList, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch_geometric.data.data import BaseData

from gnnstab.finalisers import slots_of
from gnnstab.probe.replaying._named import names_of
from gnnstab.probe.replaying.reach import (  # fmt: skip
    CACHED,
    LARGEST_COPIED,
    SPACES,
    code_around,
    contents,
    of_library,
)
from gnnstab.torch_private import preserved_version, without_torch_dispatch
from gnnstab.trials import put_all_back, put_back_after

_MISSING = object()

_MOST = 2**20
"""Entries of a container up to which a copy of it is kept."""

_WRAPPERS = (UserDict, UserList, weakref.WeakKeyDictionary, weakref.WeakValueDictionary, weakref.WeakSet)
"""Their attribute ``data`` is what they hold."""

_IN_MEMORY: tuple[Any, ...] = (ctypes.Array, ctypes.Structure, ctypes.Union, ctypes.c_int.__base__)
"""Numbers of C, of which each is a piece of memory; so are those that several processes share."""

_FLAGGED = (threading.Semaphore, threading.Event)
"""How many have passed, or that it has happened, is an attribute of each."""

_OF_MODULES = frozenset({"modules", "import_module", "__import__"})
"""By these code reaches modules, its own above all, that it names in strings."""

_OF_FUNCTIONS = ("__defaults__", "__kwdefaults__", "__code__", "__doc__")
"""What a function is made of, and can be given anew."""

_THREADS = frozenset({"current_thread", "main_thread"})
"""By these code reaches the object of a thread."""

_BY_NAME = frozenset({"globals", "f_globals", "setattr", "vars", "__dict__", "__setattr__"})
"""By these code assigns what it names in strings."""


def keep_around(twin: nn.Module | torch.optim.Optimizer, around: list[Any] | None = None) -> None:
    """A copy is about to run: the trials that run put back what its forward and the backward of it, or its step, will count outside of it.

    ``around`` is what `code_around` finds, where that is known.
    """
    put_back_after(twin, lambda: around or code_around(twin), lambda found: Outside(found).put_back)


class Outside:
    """What the functions, objects and classes of the user's own keep by now.

    Cells, globals and attributes count where code among them assigns them; containers, arrays and tensors where they hang in a cell, a
    global, a default or an attribute.
    """

    def __init__(self, found: Iterable[Any]) -> None:
        self._back: list[Callable[[], None]] = []
        self._seen: dict[int, Any] = {}
        self._left = LARGEST_COPIED
        parts = list(found)
        functions = [f for f in parts if isinstance(f, types.FunctionType) and not of_library(f)]
        self._attributes = frozenset[str]().union(*(_assigned(f.__code__).attributes for f in functions))
        for function in functions:
            self._function(function)
        for value in parts:
            if isinstance(value, type):
                if not of_library(value):
                    self._class(value)
                    self._containers(list(vars(value).values()))
            elif isinstance(value, types.FunctionType):
                self._table(vars(value))
                self._fields(value, _OF_FUNCTIONS)
            else:
                self._object(value)

    def put_back(self) -> None:
        """Everything that is not as it was is as it was again; failures as of `put_all_back`."""
        put_all_back(self._back)

    def _names(
        self, read: Callable[[str], Any], put: Callable[[str, Any], Any], drop: Callable[[str], Any], names: Iterable[str] | None = None
    ) -> None:  # fmt: skip
        for name in self._attributes if names is None else names:
            self._back.append(functools.partial(_set, read, put, drop, name, read(name)))

    def _fields(self, value: Any, names: Iterable[str]) -> None:
        """What C code holds of an object, where code among the functions assigns it."""
        put, drop = functools.partial(setattr, value), functools.partial(delattr, value)
        self._names(lambda name: getattr(value, name, _MISSING), put, drop, self._attributes.intersection(names))

    def _class(self, kind: type) -> None:
        """What stands in the class itself; of the many names that code assigns it has few."""
        read, put = vars(kind).get, functools.partial(type.__setattr__, kind)
        drop = functools.partial(type.__delattr__, kind)
        held = _of(self._attributes, vars(kind))
        self._names(lambda name: read(name, _MISSING), put, drop, held)
        self._back.append(functools.partial(_drop_new, vars(kind), drop, self._attributes, frozenset(held)))

    def _table(self, table: dict[str, Any], names: Iterable[str] | None = None) -> None:
        own = self._attributes if names is None else frozenset(names)
        self._back.append(functools.partial(_set_table, table, own, {name: table[name] for name in _of(own, table)}))

    def _object(self, value: Any) -> None:
        attributes = getattr(value, "__dict__", None)
        if attributes is not None:
            self._table(attributes, self._attributes | _kept_properties(type(value)))
            # A step of an optimizer is not run on copies; its state is as large as the model.
            held = {k: v for k, v in attributes.items() if k != "state" or not isinstance(value, Optimizer)}
            if type(value).__module__ != "threading":
                self._containers(list(held.values()))
        if isinstance(value, BaseException):
            self._fields(value, ("args",))
        slots = slots_of(type(value))
        put, drop = functools.partial(object.__setattr__, value), functools.partial(object.__delattr__, value)
        self._names(lambda name: getattr(value, name, _MISSING), put, drop, self._attributes.intersection(slots))
        self._containers([getattr(value, name, None) for name in slots])

    def _function(self, function: types.FunctionType) -> None:
        assigned, (read, imported, names) = _assigned(function.__code__), names_of(function.__code__)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
            if name in assigned.cells:
                self._back.append(functools.partial(_set_cell, cell, contents(cell)))
            self._containers(contents(cell))
        self._table(function.__globals__, assigned.globals)
        self._table(vars(function))
        if "environ" in names and id(os.environ) not in self._seen:
            self._seen[id(os.environ)] = os.environ
            self._back.append(functools.partial(_set_environment, dict(os.environ)))
        self._containers([*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()])
        if not _OF_MODULES.isdisjoint(names):
            self._table(function.__globals__, assigned.attributes)
            imported |= names & sys.modules.keys()
        for value in [*(function.__globals__.get(n) for n in read), *map(sys.modules.get, imported)]:
            self._module(value, names) if isinstance(value, types.ModuleType) else self._containers([value])

    def _module(self, module: types.ModuleType, names: frozenset[str]) -> None:
        """What code that mentions ``names`` can reach in a module of the user's."""
        if id(module) in self._seen:
            return
        self._seen[id(module)] = module
        self._table(vars(module), self._attributes)
        library = of_library(types.SimpleNamespace(__module__=module.__name__))
        for name in names & vars(module).keys():
            value = vars(module)[name]
            if isinstance(value, types.ModuleType):
                self._module(value, names)
            elif not library:
                self._containers([value])
            elif name in _THREADS and module is threading:
                self._table(vars(value()))
            elif isinstance(value, types.FunctionType):
                self._table(vars(value))

    def _containers(self, values: list[Any]) -> None:
        while values:
            value = values.pop()
            if type(value) in _NUMBERS or id(value) in self._seen:
                continue
            self._seen[id(value)] = value
            if isinstance(value, Tensor):
                self._tensor(value)
            elif isinstance(value, np.ndarray):
                if value.nbytes <= LARGEST_COPIED:
                    self._back.append(functools.partial(_set_array, value, value.copy()))
                    values += value.ravel().tolist() if value.dtype == object else ()
            elif isinstance(value, types.MappingProxyType):
                values += value.values()
            elif isinstance(value, torch.UntypedStorage):
                if value.device.type == "cpu" and value.nbytes() <= LARGEST_COPIED:
                    self._back.append(functools.partial(_set_storage, value, torch.ByteTensor(value).clone()))
            elif isinstance(value, ChainMap):
                values += value.maps
            elif isinstance(value, memoryview):
                values.append(value.obj)
            elif isinstance(value, CACHED):
                self._back.append(functools.partial(_empty_cache, value, value.cache_info().currsize))
            elif isinstance(value, (tuple, frozenset)):
                values += value
            elif isinstance(value, _WRAPPERS):
                values.append(vars(value)["data"])
            elif isinstance(value, _IN_MEMORY):
                self._back.append(functools.partial(_set_memory, value, bytes(value)))
            elif type(value).__module__ == "multiprocessing.sharedctypes":
                values.append(value.get_obj())
            elif isinstance(value, mmap.mmap):
                if not value.closed and len(value) <= LARGEST_COPIED:
                    self._back.append(functools.partial(_set_map, value, value[:], value.tell()))
            elif isinstance(value, _FLAGGED):
                self._table(vars(value), ("_value", "_flag"))
            elif isinstance(value, (np.random.Generator, np.random.BitGenerator)):
                values.append(getattr(value, "bit_generator", value).seed_seq)  # type: ignore[union-attr]
            elif isinstance(value, np.random.SeedSequence):
                self._back.append(
                    functools.partial(_set_spawned, value, value.n_children_spawned, value.__reduce__()[2])
                )
            elif isinstance(value, SPACES):
                values.append(vars(value))
            elif isinstance(value, BaseData):
                values += [vars(store)["_mapping"] for store in value.stores]
            elif isinstance(value, (dict, list, deque, set, bytearray, array.array)) and len(value) <= _MOST:
                held = _entries(value)
                self._back.append(functools.partial(_set_container, value, held))
                values += [] if isinstance(value, (bytearray, array.array)) else held[-1]

    def _tensor(self, value: Tensor) -> None:
        if attributes := vars(value):
            self._table(attributes, self._attributes)
            self._containers(list(attributes.values()))
        if "grad" in self._attributes and value.is_leaf:
            self._fields(value, ("grad",))
            self._containers([value.grad])
        if type(value) is not Tensor or value.is_meta or value.is_inference():
            return
        if value.layout is not torch.strided:
            # What these give are their own numbers, of which they are made.
            parts = ("_values", "_indices") if value.layout is torch.sparse_coo else ("values",)
            self._containers([getattr(value, part)() for part in parts if hasattr(value, part)])
            return
        if value.numel() and not value.untyped_storage().nbytes():
            return  # Its memory was given back, as FSDP does between two forwards: to read it ends the process.
        self._left -= value.nbytes
        if self._left >= 0:
            with without_torch_dispatch():
                held = value.detach().clone()
            self._back.append(functools.partial(_set_tensor, value, held, preserved_version(value)))


def _kept_properties(kind: type) -> frozenset[str]:
    """Names of the properties that keep what they have computed once among the attributes of the object."""
    held = {name: value for one in kind.__mro__ if not of_library(one) for name, value in vars(one).items()}
    return frozenset(name for name, value in held.items() if isinstance(value, functools.cached_property))


_NUMBERS = frozenset((bool, int, float, complex, str, bytes, type(None), types.FunctionType))


class _Assigned(NamedTuple):
    cells: frozenset[str]
    globals: frozenset[str]
    attributes: frozenset[str]


@functools.lru_cache(2**14)
def _assigned(code: types.CodeType) -> _Assigned:
    """Names of cells, globals and attributes that code assigns or deletes; also in the functions that it makes."""
    found: dict[str, set[str]] = {"DEREF": set(), "GLOBAL": set(), "ATTR": set()}
    for step in _steps(code):
        kind, _, what = step.opname.partition("_")
        if kind in ("STORE", "DELETE") and what in found:
            found[what].add(step.argval)
    names = names_of(code)[2]
    if not _BY_NAME.isdisjoint(names):
        found["GLOBAL"] |= names
        found["ATTR"] |= names
    return _Assigned(*map(frozenset, found.values()))


def _steps(code: types.CodeType) -> Iterator[dis.Instruction]:
    yield from dis.get_instructions(code)
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _steps(inner)


def _set(read: Callable[[str], Any], put: Callable[[str, Any], Any], drop: Callable[[str], Any], name: str, value: Any) -> None:  # fmt: skip
    if read(name) is not value:
        drop(name) if value is _MISSING else put(name, value)


def _drop_new(
    table: Mapping[str, Any], drop: Callable[[str], Any], names: frozenset[str], held: frozenset[str]
) -> None:
    put_all_back(functools.partial(drop, name) for name in _of(names, table) if name not in held)


def _of(names: frozenset[str], table: Mapping[str, Any]) -> list[str]:
    """Those of ``names`` that stand in a table; whichever of the two is larger is not gone through."""
    return (
        [name for name in names if name in table] if len(names) < len(table) else [n for n in list(table) if n in names]
    )


def _set_table(table: dict[str, Any], names: frozenset[str], held: dict[str, Any]) -> None:
    for name in _of(names, table):
        if name not in held and not isinstance(table[name], types.ModuleType):  # One that is imported stays.
            table.pop(name)
    for name, value in held.items():
        if table.get(name, _MISSING) is not value:
            table[name] = value


def _set_cell(cell: types.CellType, held: list[Any]) -> None:
    now = contents(cell)
    if held and not (now and now[0] is held[0]):
        cell.cell_contents = held[0]
    elif now and not held:
        del cell.cell_contents


def _set_map(value: mmap.mmap, held: bytes, position: int) -> None:
    if value.closed:
        return
    if value[:] != held and len(value) == len(held):
        value[:] = held
    value.seek(position)


def _set_spawned(sequence: Any, number: int, state: Any) -> None:
    if sequence.n_children_spawned != number:
        sequence.__setstate__(state)


def _set_memory(number: Any, held: bytes) -> None:
    ctypes.memmove(ctypes.byref(number), held, len(held))


def _set_environment(held: dict[str, str]) -> None:
    for name in os.environ.keys() - held.keys():
        del os.environ[name]
    os.environ.update({name: value for name, value in held.items() if os.environ.get(name) != value})


def _set_storage(storage: torch.UntypedStorage, held: Tensor) -> None:
    if storage.nbytes() == held.nbytes:
        torch.ByteTensor(storage).copy_(held)


def _set_array(held: np.ndarray[Any, Any], values: np.ndarray[Any, Any]) -> None:
    # Of an array of objects the bytes are where these lie: the same ones, or not.
    if held.shape == values.shape and held.tobytes() != values.tobytes() and held.flags.writeable:
        held[...] = values


def _set_tensor(tensor: Tensor, values: Tensor, version: Any) -> None:
    with torch.no_grad(), version:
        if tensor.shape == values.shape and not torch.equal(tensor, values):
            tensor.detach().copy_(values)


def _empty_cache(cached: Any, held: int) -> None:
    """What a trial was the first to put into a cache; what stands there beside the run's own cannot be told apart."""
    if not held:
        cached.cache_clear()


def _entries(container: Any) -> tuple[Any, ...]:
    """Copies of what a container holds: of a dict the keys and the values."""
    if isinstance(container, OrderedDict):  # Its order is not that of the dict in it.
        keys = list(OrderedDict.keys(container))
        return keys, [dict.__getitem__(container, key) for key in keys]
    if isinstance(container, dict):
        return list(dict.keys(container)), list(dict.values(container))
    return (container[:] if isinstance(container, (bytearray, array.array)) else list(container),)


def _set_container(container: Any, held: tuple[Any, ...]) -> None:
    now = _entries(container)
    if all(len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True)) for a, b in zip(now, held, strict=True)):
        return
    if isinstance(container, dict):
        # Past what a class of the user's own does when it is written to.
        kind: Any = OrderedDict if isinstance(container, OrderedDict) else dict
        if [*map(id, now[0])] != [*map(id, held[0])]:  # Else a signal handler finds every key at any moment.
            kind.clear(container)
        kind.update(container, zip(*held, strict=True))
    elif isinstance(container, set):
        set.clear(container)
        set.update(container, held[0])
    elif isinstance(container, deque):
        deque.clear(container)
        deque.extend(container, held[0])
    elif isinstance(container, list):
        list.__setitem__(container, slice(None), held[0])
    else:
        container[:] = held[0]
