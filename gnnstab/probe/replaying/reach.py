"""What a copy, or a loss, still reaches of the user's own: `copy.deepcopy` keeps functions, and what hangs in their closures, as they are."""

from __future__ import annotations

import argparse
import copy
import functools
import gc
import queue
import random
import sys
import threading
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.inspector import Inspector

from gnnstab.errors import UsageError
from gnnstab.finalisers import refuse_finalisers, slots_of
from gnnstab.own_draws import own_draws
from gnnstab.probe.replaying._named import QUIET, Steps, is_sealed, may_count, names_of
from gnnstab.randomness import deep_copy
from gnnstab.stored import bytes_of
from gnnstab.torch_private import functions_of_operator, operators_named, tree_leaves

SHARED = "with the run, through a function, a class or a global that deepcopy keeps as it is: a replay would change the training"

_LIBRARIES = frozenset({*sys.stdlib_module_names, "torch", "torch_geometric", "numpy", "gnnstab"} - {"__main__"})
"""Code of these keeps nothing of a run in closures and globals."""

GENERATORS = (torch.Generator, np.random.Generator, np.random.BitGenerator, np.random.RandomState, random.Random)

_STATEFUL = (*GENERATORS, queue.Queue, queue.SimpleQueue)

FLAGS = frozenset((bool, int, float, str, type(None)))
"""What most attributes of a module are; none of them can be changed."""

CONTAINERS = frozenset((dict, OrderedDict, list, set))
"""Most of a module's are empty."""

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, np.ndarray, Inspector)

_RESTORED = (random.random.__self__, np.random.random.__self__)  # type: ignore[attr-defined]
"""The generators behind the functions of `random` and `numpy.random`: every replay gives them back as they were."""

CACHED = type(functools.lru_cache(lambda: None))
"""Class of what `functools.lru_cache` and `functools.cache` make."""

SPACES = (types.SimpleNamespace, argparse.Namespace, threading.local)
"""Classes of the standard library whose instances hold what the user puts there."""

_NO_CODE = compile("", "", "exec")

_MAKERS = frozenset({"default_rng", *(kind.__name__ for kind in GENERATORS)})
"""Names by which code makes a generator."""

_METHODS = frozenset({"__init__", "__new__", "__repr__", "extra_repr", "reset_parameters"})
"""Methods that no forward calls."""


def shared_with(
    twin: Any, original: nn.Module, functions: Iterable[types.FunctionType] = (), code: list[Any] | None = None
) -> str:
    """What of ``original`` or of other state of a run a forward of ``twin``, its copy, would change; empty for nothing.

    Tables of hooks are passed over. ``functions`` are over own copies, see `own_function`. ``code`` gets what `code_around` finds without both.
    """
    own = set(map(id, original.modules()))
    own |= {id(t) for m in original.modules() for t in (*m._parameters.values(), *m._buffers.values()) if t is not None}
    known, mine = frozenset(map(id, held_by(original))), frozenset(map(id, functions))
    steps, found = Steps(), list[Any]()
    for value, path in _reached(twin, own, known, mine=mine):
        if id(value) in own or _keeps_state(value):
            return path or type(value).__name__
        steps.saw(value, path)
        found.append(value)
    if code is not None:  # A module among them was not looked through.
        code += code_around(twin) if any(isinstance(v, nn.Module) for v in found) else filter(may_count, found)
    return steps.taken()


def refuse_draws_of_process(function: Any) -> None:
    """Refuse a model or a loss whose code may draw from the generators of NumPy and `random`, or sets torch's, while another thread may.

    Raises:
        UsageError: It may; `gnnstab.own_draws` has nothing to put in their place.
    """
    own = own_draws()
    if own is None:
        return
    for value, path in _reached([function], {id(function)}, frozenset(), into_modules=True):
        if isinstance(value, types.FunctionType):
            names = names_of(value.__code__)[2]
            drawing = random in value.__globals__.values() if of_library(value) else not _FOR_ALL.isdisjoint(names)
        else:
            drawing = any(one is known for one in (value, getattr(value, "__self__", None)) for known in _RESTORED)
        if drawing:
            raise own.refusal(path or type(function).__name__)


_FOR_ALL = frozenset({"random", "fork_rng", "set_rng_state", "manual_seed", "checkpoint"})
"""Names by which code draws from a generator of the process, or sets one, other than by an operation of torch."""


def own_copy(value: Any) -> Any:
    """A copy of an argument that is no tensor and no container, so that a forward on it changes nothing of the run.

    Raises:
        UsageError: There is none: an iterator, a queue, a function or a module that holds state.
    """
    if isinstance(value, _UNCHANGING):
        return value
    if isinstance(value, torch.Generator):
        return value.clone_state()
    what = f"the model is called with a {type(value).__name__}"
    if isinstance(value, (queue.Queue, queue.SimpleQueue)) or _goes_on(value):
        raise UsageError(f"{what}, which a replay would use up")
    tensors = held_tensors(value)
    # Whoever writes into a tensor that the copy and the run have in common is refused, see `_own_state`.
    lent = {id(t): t for t in tensors} if bytes_of(tensors) > LARGEST_COPIED else {}
    try:
        refuse_finalisers(value, lent)
        twin = copy.deepcopy(value, lent)
    except Exception as error:
        raise UsageError(f"{what}, which cannot be copied: {type(error).__name__}: {error}") from error
    if trouble := next((path for v, path in _reached([twin], set(), frozenset({id(value)})) if _keeps_state(v)), None):
        raise UsageError(f"{what}, whose copy shares {trouble or 'its state'} {SHARED}")
    return twin


LARGEST_COPIED = 64 * 2**20
"""Bytes of the tensors of one argument of a user's own class up to which they are copied for each look."""


def held_tensors(value: Any, but: tuple[type, ...] = ()) -> list[Tensor]:
    """Every tensor that a deep copy of ``value`` would copy: in containers, and in attributes of whatever class, ``but`` of some."""
    found: list[Tensor] = []
    waiting, seen = [value], {}
    while waiting:
        one = waiting.pop()
        if holds_nothing(one) or id(one) in seen or isinstance(one, (*_KEPT, *but)):
            continue
        seen[id(one)] = one  # An id is used again once its object is gone.
        if isinstance(one, Tensor):
            found.append(one)
        elif isinstance(one, dict):  # A mapping of another kind may make what it is asked for.
            waiting += dict.values(one)
        elif isinstance(one, types.MappingProxyType):
            waiting += one.values()
        else:
            waiting += one if isinstance(one, (list, tuple, set, frozenset, deque)) else [v for _, v in vars_of(one)]
    return found


_KEPT = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType, weakref.ref)
"""What `copy.deepcopy` keeps as it is."""


_UNCHANGING = (bool, int, float, complex, str, bytes, type(None), type, torch.dtype, torch.device, range, slice, Enum, np.generic)  # fmt: skip


class Reached(NamedTuple):
    """What a function reaches that a call may change."""

    owners: list[Any]
    """Modules, and callable objects of the user's own classes."""

    generators: list[Any]
    other: str = ""
    """Where anything else of the kind hangs; empty for nothing."""

    code: Sequence[Any] = ()
    """Functions, classes and objects of the user's own, which may keep numbers and containers."""


def stateful(function: Any) -> Reached:
    """All that ``function`` reaches: by closures, by what it is bound to, by globals, by the objects behind these."""
    owners, generators, code, other = [], [], [], ""
    inside: set[int] = set()
    steps = Steps()
    for value, path in _reached([function], {id(function)}, frozenset(), into_modules=True):
        steps.saw(value, path)
        if may_count(value):
            code.append(value)
        if isinstance(value, nn.Module) or (callable(value) and is_own_object(value)):
            owners.append(value)
            inside |= {id(t) for t in vars(value).get("_parameters", {}).values()}
        elif isinstance(value, GENERATORS):
            generators.append(value)
        elif _keeps_state(value) and id(value) not in inside:
            other = other or path or type(value).__name__
    return Reached(owners, generators, other or steps.taken(), code)


def code_around(twin: nn.Module | torch.optim.Optimizer) -> list[Any]:
    """Functions, classes and objects of the user's own that a copy of a model or optimizer has in common with the run; hooks are looked at too."""
    hung = held_by(twin) if isinstance(twin, nn.Module) else list(vars(twin).values())
    hooks = [hook for table in hung if isinstance(table, dict) for hook in table.values() if callable(hook)]
    functions = {id(value) for value in (*hung, *hooks) if isinstance(value, types.FunctionType)}
    found = _reached([twin, *hooks], functions, frozenset(), into_modules=True)
    return [value for value, _ in found if may_count(value)]


def held_by(model: nn.Module) -> list[Any]:
    """What stands in the attributes of its modules but these themselves; most of it is flags and empty tables, which are left out."""
    return [
        v
        for m in model.modules()
        for name, v in vars(m).items()
        if type(v) not in FLAGS and (type(v) not in CONTAINERS or v) and name != "_modules"
    ]


def holds_nothing(value: Any) -> bool:
    """True of what no call can change anything through."""
    kind = type(value)
    return kind in FLAGS or (not value if kind in CONTAINERS else isinstance(value, _PLAIN))


def is_own_object(value: Any) -> bool:
    """True of an object of the user's own class, with attributes."""
    return (
        hasattr(value, "__dict__") and not isinstance(value, (type, types.FunctionType)) and not of_library(type(value))
    )


def _keeps_state(value: Any) -> bool:
    if any(value is known for known in _RESTORED):
        return False
    if isinstance(value, nn.Module):
        return any(True for _ in value.parameters()) or any(True for _ in value.buffers())
    if isinstance(value, CACHED) and value.cache_info().currsize == 0:  # The first call would be that of the copy.
        return not _MAKERS.isdisjoint(getattr(getattr(value, "__wrapped__", None), "__code__", _NO_CODE).co_names)
    return isinstance(value, _STATEFUL) or (isinstance(value, Tensor) and value.requires_grad) or _goes_on(value)


def _goes_on(value: Any) -> bool:
    own = not isinstance(value, (type, nn.Module, Tensor))
    return own and (hasattr(type(value), "__next__") or is_sealed(value))


def own_function(function: types.FunctionType, memo: dict[int, Any]) -> types.FunctionType:
    """A function of the same code over copies of what hangs in its closure, as ``self`` does in ``lambda x: self.norm(x)``.

    ``memo`` is that of the copy of the model; the functions that were made stand in it.
    """
    if isinstance(made := memo.get(id(function)), types.FunctionType):
        return made
    cells = tuple(types.CellType() for _ in function.__closure__ or ())
    twin = types.FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, cells)
    twin.__kwdefaults__ = function.__kwdefaults__
    vars(twin).update(vars(function))
    memo[id(function)] = twin
    for cell, own in zip(function.__closure__ or (), cells, strict=True):
        for value in contents(cell):
            kept = [t for t in tree_leaves(value) if isinstance(t, Tensor) and t.grad_fn is not None]
            memo.update({id(t): t.detach().clone() for t in kept})  # One that hangs in its graph refuses to be copied.
            inner = isinstance(value, types.FunctionType) and value.__closure__
            own.cell_contents = own_function(value, memo) if inner else deep_copy(value, memo)
    return twin


def contents(cell: types.CellType) -> list[Any]:
    """What a cell holds; nothing where it is not filled yet."""
    try:
        return [cell.cell_contents]
    except ValueError:
        return []


def _reached(
    root: Any,
    own: set[int],
    known: frozenset[int],
    *,
    into_modules: bool = False,
    mine: frozenset[int] = frozenset(),
) -> Iterator[tuple[Any, str]]:
    """(value, path) of what hangs in functions, classes and globals, or is ``own``: all that a copy has in common with its original."""
    waiting: list[tuple[Any, str, bool]] = [(root, "", False)]
    seen: set[tuple[int, bool]] = set()
    alive = []  # An id is used again once its object is gone, as that of a bound method.
    while waiting:
        value, path, shared = waiting.pop()
        # A copy shares functions, which keep nothing themselves, whatever they hang on.
        shared = shared or id(value) in own or (id(value) in known and not isinstance(value, (nn.Module, Tensor)))
        if (id(value), shared) in seen:
            continue
        seen.add((id(value), shared))
        alive.append(value)
        if shared:
            yield value, path
            if isinstance(value, nn.Module) and not into_modules:
                continue
        if id(value) in mine:
            shared = False
        parts = [part for part in _parts(value, mine) if not holds_nothing(part[1])]
        waiting += [(v, f"{path}.{n}".lstrip("."), s or shared) for n, v, s in parts]


def _parts(value: Any, mine: frozenset[int] = frozenset()) -> Iterator[tuple[str, Any, bool]]:
    """(name, part, whether a copy shares it)."""
    if isinstance(value, Tensor):  # Most of what is asked about, like modules.
        return
    if isinstance(value, types.FunctionType):
        yield from _of_function(value, id(value) not in mine)
    elif isinstance(value, nn.Module):
        yield from _of_object(value)
    elif isinstance(value, types.MethodType):
        yield from (("__self__", value.__self__, False), ("__func__", value.__func__, True))
    elif isinstance(value, (types.BuiltinMethodType, types.MethodWrapperType)):
        if not any(value.__self__ is known for known in _RESTORED):
            yield "__self__", value.__self__, True
    elif isinstance(value, weakref.ref):
        # torch's recurrent layers keep such references to weights, and never read them.
        if not isinstance(value(), Tensor):
            yield "__call__", value(), True
    elif isinstance(value, functools.partial):
        yield from (("func", value.func, False), ("args", value.args, False), ("keywords", value.keywords, False))
    elif type(value).__module__ in ("builtins", "collections") and isinstance(value, Mapping):
        yield from ((str(k), v, False) for k, v in value.items())
        yield from (("key", k, False) for k in value if not isinstance(k, _PLAIN))
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from ((str(i), v, False) for i, v in enumerate(value))
    elif isinstance(value, CACHED):
        # Tensors and modules that are only read may be: an operation that changes them is refused as it comes.
        yield from (("cache", v, True) for v in _cached(value) if isinstance(v, GENERATORS))
        yield "__wrapped__", value.__wrapped__, True
    elif own := functions_of_operator(value):
        yield from ((n, v, True) for n, v in own.items())
    elif isinstance(value, types.ModuleType):
        yield from ((n, v, True) for n, v in vars(value).items() if isinstance(v, GENERATORS))
    elif isinstance(value, type):
        if not of_library(value):
            names = (n for n in vars(value) if n not in _METHODS)
            yield from ((n, part, True) for n in names for part in _unwrapped(vars(value)[n]))
    elif isinstance(value, SPACES) or not of_library(type(value)):
        yield from _of_object(value)


def _of_object(value: Any) -> list[tuple[str, Any, bool]]:
    held = [(n, v) for n, v in vars_of(value) if type(v) not in FLAGS and (type(v) not in CONTAINERS or v)]
    # Hooks stay behind when a model is copied, and gnnstab's own hang on it.
    parts = [(n, v, False) for n, v in held if not n.endswith("hooks") and n != "message"]
    return parts + [(c.__name__, c, True) for c in type(value).__mro__ if not of_library(c)]


def _cached(function: Any) -> Iterator[Any]:
    """What calls of a function with a cache have returned so far."""
    for value in gc.get_referents(function):
        yield from value.values() if isinstance(value, dict) else [value]


def vars_of(value: Any) -> list[tuple[str, Any]]:
    """Attributes of an instance, those in slots included."""
    held = [(name, getattr(value, name)) for name in slots_of(type(value)) if hasattr(value, name)]
    return [*getattr(value, "__dict__", {}).items(), *held]


def _of_function(function: types.FunctionType, shared: bool) -> Iterator[tuple[str, Any, bool]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        yield from ((name, value, shared) for value in contents(cell))
    yield "defaults", (function.__defaults__, function.__kwdefaults__, vars(function)), True
    if not of_library(function) and (function.__module__ or "").partition(".")[0] not in QUIET:
        read, imported, names = names_of(function.__code__)
        given = {n: function.__globals__.get(n) for n in read} | {n: sys.modules.get(n) for n in imported}
        yield from (("ops", operator, True) for operator in operators_named(names))
        for name, value in given.items():
            yield from ((path, v, True) for path, v in _named_in(name, value, names, set()))


def _named_in(path: str, value: Any, names: frozenset[str], seen: set[int]) -> Iterator[tuple[str, Any]]:
    """``value``; of a module what code that mentions ``names`` can take from it: ``rng``, in ``utils.rng`` or ``getattr(utils, "rng")``."""
    if not isinstance(value, types.ModuleType):
        yield path, value
    elif value.__name__.partition(".")[0] not in _LIBRARIES and id(value) not in seen:
        seen.add(id(value))
        for name in names & vars(value).keys():
            yield from _named_in(f"{path}.{name}", vars(value)[name], names, seen)


def of_library(kind: Any) -> bool:
    """True of a class or function of the standard library, torch, NumPy or gnnstab."""
    return (kind.__module__ or "").partition(".")[0] in _LIBRARIES


def _unwrapped(attribute: Any) -> Sequence[Any]:
    """The functions in what a class holds."""
    if isinstance(attribute, (staticmethod, classmethod)):
        return (attribute.__func__,)
    if isinstance(attribute, functools.cached_property):
        return (attribute.func,)
    return (attribute.fget, attribute.fset, attribute.fdel) if isinstance(attribute, property) else (attribute,)
