"""How what was found outside of functions is given back: nothing is written where it is as it was."""

from __future__ import annotations

import array
import ctypes
import functools
import mmap
import os
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gnnstab.probe.replaying.reach import contents
from gnnstab.trials import put_all_back

MISSING = object()
"""What a name had that stood nowhere."""


def set_name(read: Callable[[str], Any], put: Callable[[str, Any], Any], drop: Callable[[str], Any], name: str, value: Any) -> None:  # fmt: skip
    if read(name) is not value:
        drop(name) if value is MISSING else put(name, value)


def drop_new(table: Mapping[str, Any], drop: Callable[[str], Any], names: frozenset[str], held: frozenset[str]) -> None:
    put_all_back(functools.partial(drop, name) for name in standing_in(names, table) if name not in held)


def standing_in(names: frozenset[str], table: Mapping[str, Any]) -> list[str]:
    """Those of ``names`` that stand in a table; whichever of the two is larger is not gone through."""
    return (
        [name for name in names if name in table] if len(names) < len(table) else [n for n in list(table) if n in names]
    )


def set_table(table: dict[str, Any], names: frozenset[str], held: dict[str, Any]) -> None:
    for name in standing_in(names, table):
        if name not in held and not isinstance(table[name], types.ModuleType):  # One that is imported stays.
            table.pop(name)
    for name, value in held.items():
        if table.get(name, MISSING) is not value:
            table[name] = value


def set_cell(cell: types.CellType, held: list[Any]) -> None:
    now = contents(cell)
    if held and not (now and now[0] is held[0]):
        cell.cell_contents = held[0]
    elif now and not held:
        del cell.cell_contents


def set_map(value: mmap.mmap, held: bytes, position: int) -> None:
    if value.closed:
        return
    if value[:] != held and len(value) == len(held):
        value[:] = held
    value.seek(position)


def set_spawned(sequence: Any, number: int, state: Any) -> None:
    if sequence.n_children_spawned != number:
        sequence.__setstate__(state)


def set_memory(number: Any, held: bytes) -> None:
    ctypes.memmove(ctypes.byref(number), held, len(held))


def set_environment(held: dict[str, str]) -> None:
    for name in os.environ.keys() - held.keys():
        del os.environ[name]
    os.environ.update({name: value for name, value in held.items() if os.environ.get(name) != value})


def set_storage(storage: torch.UntypedStorage, held: Tensor) -> None:
    if storage.nbytes() == held.nbytes:
        torch.ByteTensor(storage).copy_(held)


def set_array(held: np.ndarray[Any, Any], values: np.ndarray[Any, Any]) -> None:
    # Of an array of objects the bytes are where these lie: the same ones, or not.
    if held.shape == values.shape and held.tobytes() != values.tobytes() and held.flags.writeable:
        held[...] = values


def set_tensor(tensor: Tensor, values: Tensor, version: Any) -> None:
    with torch.no_grad(), version:
        if tensor.shape == values.shape and not torch.equal(tensor, values):
            tensor.detach().copy_(values)


def empty_cache(cached: Any, held: int) -> None:
    """What a trial was the first to put into a cache; what stands there beside the run's own cannot be told apart."""
    if not held:
        cached.cache_clear()


def entries(container: Any) -> tuple[Any, ...]:
    """Copies of what a container holds: of a dict the keys and the values."""
    if isinstance(container, OrderedDict):  # Its order is not that of the dict in it.
        keys = list(OrderedDict.keys(container))
        return keys, [dict.__getitem__(container, key) for key in keys]
    if isinstance(container, dict):
        return list(dict.keys(container)), list(dict.values(container))
    return (container[:] if isinstance(container, (bytearray, array.array)) else list(container),)


def set_container(container: Any, held: tuple[Any, ...]) -> None:
    now = entries(container)
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
