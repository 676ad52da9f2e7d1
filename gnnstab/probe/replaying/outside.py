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
from collections import ChainMap, UserDict, UserList, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch_geometric.data.data import BaseData

from gnnstab.finalisers import slots_of
from gnnstab.probe.replaying._named import names_of
from gnnstab.probe.replaying._putting_back import (  # fmt: skip
    MISSING,
    drop_new,
    empty_cache,
    entries,
    set_array,
    set_cell,
    set_container,
    set_environment,
    set_map,
    set_memory,
    set_name,
    set_spawned,
    set_storage,
    set_table,
    set_tensor,
    standing_in,
)
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
    put_back_after(twin, lambda: code_around(twin) if around is None else around, lambda found: Outside(found).put_back)


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
            self._back.append(functools.partial(set_name, read, put, drop, name, read(name)))

    def _fields(self, value: Any, names: Iterable[str]) -> None:
        """What C code holds of an object, where code among the functions assigns it."""
        put, drop = functools.partial(setattr, value), functools.partial(delattr, value)
        self._names(lambda name: getattr(value, name, MISSING), put, drop, self._attributes.intersection(names))

    def _class(self, kind: type) -> None:
        """What stands in the class itself; of the many names that code assigns it has few."""
        read, put = vars(kind).get, functools.partial(type.__setattr__, kind)
        drop = functools.partial(type.__delattr__, kind)
        held = standing_in(self._attributes, vars(kind))
        self._names(lambda name: read(name, MISSING), put, drop, held)
        self._back.append(functools.partial(drop_new, vars(kind), drop, self._attributes, frozenset(held)))

    def _table(self, table: dict[str, Any], names: Iterable[str] | None = None) -> None:
        own = self._attributes if names is None else frozenset(names)
        self._back.append(
            functools.partial(set_table, table, own, {name: table[name] for name in standing_in(own, table)})
        )

    def _object(self, value: Any) -> None:
        attributes = getattr(value, "__dict__", None)
        if attributes is not None:
            self._table(attributes, self._attributes | _kept_properties(type(value)))
            if isinstance(value, Optimizer):
                # A step of an optimizer is not run on copies; its state is as large as the model.
                self._containers([held for name, held in attributes.items() if name != "state"])
            elif type(value).__module__ != "threading":
                self._containers(list(attributes.values()))
        if isinstance(value, BaseException):
            self._fields(value, ("args",))
        if not (slots := slots_of(type(value))):
            return
        put, drop = functools.partial(object.__setattr__, value), functools.partial(object.__delattr__, value)
        self._names(lambda name: getattr(value, name, MISSING), put, drop, self._attributes.intersection(slots))
        self._containers([getattr(value, name, None) for name in slots])

    def _function(self, function: types.FunctionType) -> None:
        assigned, (read, imported, names) = _assigned(function.__code__), names_of(function.__code__)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
            if name in assigned.cells:
                self._back.append(functools.partial(set_cell, cell, contents(cell)))
            self._containers(contents(cell))
        self._table(function.__globals__, assigned.globals)
        self._table(vars(function))
        if "environ" in names and id(os.environ) not in self._seen:
            self._seen[id(os.environ)] = os.environ
            self._back.append(functools.partial(set_environment, dict(os.environ)))
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
        seen = self._seen
        while values:
            value = values.pop()
            look = _look_of(type(value))
            if look is None or id(value) in seen:
                continue
            seen[id(value)] = value
            if within := look(self, value):
                values += within

    def _container(self, value: Any) -> Any:
        if len(value) > _MOST:
            return ()
        held = entries(value)
        self._back.append(functools.partial(set_container, value, held))
        return () if isinstance(value, (bytearray, array.array)) else held[-1]

    def _array(self, value: np.ndarray[Any, Any]) -> Any:
        if value.nbytes > LARGEST_COPIED:
            return ()
        self._back.append(functools.partial(set_array, value, value.copy()))
        return value.ravel().tolist() if value.dtype == object else ()

    def _storage(self, value: torch.UntypedStorage) -> None:
        if value.device.type == "cpu" and value.nbytes() <= LARGEST_COPIED:
            self._back.append(functools.partial(set_storage, value, torch.ByteTensor(value).clone()))

    def _cache(self, value: Any) -> None:
        self._back.append(functools.partial(empty_cache, value, value.cache_info().currsize))

    def _number_of_c(self, value: Any) -> None:
        self._back.append(functools.partial(set_memory, value, bytes(value)))

    def _map(self, value: mmap.mmap) -> None:
        if not value.closed and len(value) <= LARGEST_COPIED:
            self._back.append(functools.partial(set_map, value, value[:], value.tell()))

    def _flagged(self, value: Any) -> None:
        self._table(vars(value), ("_value", "_flag"))

    def _seeds(self, value: np.random.SeedSequence) -> None:
        self._back.append(functools.partial(set_spawned, value, value.n_children_spawned, value.__reduce__()[2]))

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
            self._back.append(functools.partial(set_tensor, value, held, preserved_version(value)))


_LOOKS: tuple[tuple[Any, Callable[[Outside, Any], Any]], ...] = (
    (Tensor, Outside._tensor),
    (np.ndarray, Outside._array),
    (types.MappingProxyType, lambda _, value: value.values()),
    (torch.UntypedStorage, Outside._storage),
    (ChainMap, lambda _, value: value.maps),
    (memoryview, lambda _, value: (value.obj,)),
    (CACHED, Outside._cache),
    ((tuple, frozenset), lambda _, value: value),
    (_WRAPPERS, lambda _, value: (vars(value)["data"],)),
    (_IN_MEMORY, Outside._number_of_c),
    (mmap.mmap, Outside._map),
    (_FLAGGED, Outside._flagged),
    (
        (np.random.Generator, np.random.BitGenerator),
        lambda _, value: (getattr(value, "bit_generator", value).seed_seq,),
    ),
    (np.random.SeedSequence, Outside._seeds),
    (SPACES, lambda _, value: (vars(value),)),
    (BaseData, lambda _, value: [vars(store)["_mapping"] for store in value.stores]),
    ((dict, list, deque, set, bytearray, array.array), Outside._container),
)
"""Classes, and what looks at a value of one of them and returns what is to be looked at next; the first that fits counts."""

_LOOK_OF: WeakKeyDictionary[type, Callable[[Outside, Any], Any] | None] = WeakKeyDictionary()


def _look_of(kind: type) -> Callable[[Outside, Any], Any] | None:
    """What looks at values of a class; None for those that keep nothing, which most do."""
    try:
        return _LOOK_OF[kind]
    except KeyError:
        look = next((look for kinds, look in _LOOKS if issubclass(kind, kinds)), None)
        if look is None and kind.__module__ == "multiprocessing.sharedctypes":
            look = _within_its_lock
        _LOOK_OF[kind] = look
        return look


def _within_its_lock(_: Outside, value: Any) -> Any:
    return (value.get_obj(),)


_KEPT_PROPERTIES: WeakKeyDictionary[type, frozenset[str]] = WeakKeyDictionary()


def _kept_properties(kind: type) -> frozenset[str]:
    """Names of the properties that keep what they have computed once among the attributes of the object."""
    if (known := _KEPT_PROPERTIES.get(kind)) is None:
        held = {name: value for one in kind.__mro__ if not of_library(one) for name, value in vars(one).items()}
        known = frozenset(name for name, value in held.items() if isinstance(value, functools.cached_property))
        _KEPT_PROPERTIES[kind] = known
    return known


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
