"""Where the code of a class calls a softmax: over edges, or over the keys of a dense matrix."""

from __future__ import annotations

import dis
import inspect
import sys
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import resolve_name
from types import CodeType, FunctionType, ModuleType
from typing import Any

from torch import nn
from torch_geometric.nn import MessagePassing
from torch_geometric.utils import softmax

from gnnstab.layers import layer_of

_SOFTMAX = frozenset({"softmax", "Softmax", "scaled_dot_product_attention", "softmax_"})
_EXPONENTIALS = frozenset({"exp", "exp_"})
_PRODUCTS = frozenset({"einsum", "matmul", "bmm", "mm", "@", "@="})
_QUOTIENTS = frozenset({"/", "/=", "div", "div_", "divide", "true_divide", "reciprocal"})
_OPERATORS = {
    "BINARY_MATRIX_MULTIPLY": "@",
    "INPLACE_MATRIX_MULTIPLY": "@",
    "BINARY_TRUE_DIVIDE": "/",
    "INPLACE_TRUE_DIVIDE": "/",
}
"""What Python 3.10 calls the operators that later versions keep beside BINARY_OP."""

_LIBRARIES = ("torch", "torch_geometric", "torch_scatter", "torch_sparse", "numpy", "builtins")
_NEVER = frozenset({"__init__", "reset_parameters", "extra_repr", "__repr__"})
_FIRST = ("message", "edge_update", "forward")
_DEPTH = 3
"""How many functions may stand between a method and the softmax."""

LINEAR = ("SGFormerAttention", "PerformerAttention", "PolynormerAttention")
"""Classes whose attention has no softmax, and so no scores that could be looked at."""

_ENCODERS = (nn.TransformerEncoderLayer, nn.TransformerEncoder)
"""Classes that, like every fused layer, take another way, whose results differ by rounding, as soon as anybody looks at what torch's functions get."""


def edge_softmax(value: Any) -> bool:
    """True for PyG's softmax over edges, and for a function that bears such a name and takes an index second."""
    if value is softmax:
        return True
    if (
        not isinstance(value, FunctionType)
        or "softmax" not in value.__name__.lower()
        or "log" in value.__name__.lower()
    ):
        return False
    names = list(inspect.signature(value).parameters)
    return len(names) > 1 and names[1] in (
        "index",
        "idx",
        "indices",
        "batch",
        "edge_index_i",
        "dst",
        "target",
        "segment_ids",
    )


def _fused(module: nn.Module) -> bool:
    kind = layer_of(module)
    return isinstance(module, _ENCODERS) or (kind is not None and kind.fused)


def helper(value: Any) -> bool:
    """True for a plain function of somebody's own code."""
    return isinstance(value, FunctionType) and not library(value.__module__)


def library(name: str | None) -> bool:
    """True for a module of torch, PyG and the like."""
    return (name or "").partition(".")[0] in _LIBRARIES


def named(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """(name, value) of every global that a function uses."""
    for name in _loaded(function.__code__):
        if name in function.__globals__:
            yield name, function.__globals__[name]


@lru_cache(maxsize=4096)
def _loaded(code: CodeType) -> tuple[str, ...]:
    """Names of the globals that a function loads; a code object keeps those of attributes beside them: ``F.softmax`` is no use of a global softmax."""
    loaded = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return tuple(name for name in code.co_names if name in loaded)


def imported(function: FunctionType) -> Iterator[ModuleType]:
    """The modules that a function imports each time it runs, and their packages, as far as they are loaded."""
    package = str(function.__globals__.get("__package__") or "")
    for name, level in _imports(function.__code__):
        try:
            full = resolve_name("." * level + name, package)
        except ImportError:  # It would fail there as well.
            continue
        for found in dict.fromkeys((full, full.partition(".")[0])):
            module = sys.modules.get(found)
            if isinstance(module, ModuleType):
                yield module


@lru_cache(maxsize=4096)
def _imports(code: CodeType) -> tuple[tuple[str, int], ...]:
    """Name and level (of a relative import) of the modules that code imports."""
    instructions = list(dis.get_instructions(code))
    found = [(i.argval, instructions[at - 2].argval) for at, i in enumerate(instructions) if i.opname == "IMPORT_NAME"]
    return tuple((name, level if isinstance(level, int) else 0) for name, level in found)


def softmax_within(space: ModuleType, names: tuple[str, ...]) -> bool:
    """True where an imported module has an edge softmax under one of the names, itself or one step further in."""
    for name in names:
        found = getattr(space, name, None)
        if edge_softmax(found):
            return True
        if (
            isinstance(found, ModuleType)
            and found is not space
            and any(edge_softmax(getattr(found, n, None)) for n in names)
        ):
            return True
    return False


def calls_edge_softmax(function: FunctionType, depth: int = _DEPTH) -> bool:
    """True for a function that calls a softmax over edges, itself or through functions of its own kind."""
    function = inspect.unwrap(function)
    names = function.__code__.co_names
    for _, value in named(function):
        if edge_softmax(value) or (isinstance(value, ModuleType) and softmax_within(value, names)):
            return True
        if depth and helper(value) and value is not function and calls_edge_softmax(value, depth - 1):
            return True
    return any(softmax_within(module, names) for module in imported(function))


def edge_places(module: nn.Module) -> tuple[str, ...]:
    """Names of the methods of a module in which a softmax over edges is called, the customary ones first."""
    if getattr(module, "attention", True) is False or getattr(module, "use_attention", True) is False:
        return ()  # GeneralConv and HypergraphConv attend only when they are asked to.
    found = [name for name, function in _methods(module) if calls_edge_softmax(function)]
    return tuple(sorted(found, key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST)))


def may_attend(module: nn.Module, linear: bool = True) -> bool:
    """True for a module whose own code names what attention is made of; whether it attends shows when it runs.

    That is torch's softmax or fused attention, an exponential beside a quotient, or a matrix product beside a quotient, of which
    ``linear`` attention consists.
    """
    if any(map(_fused, module.modules())) or not _looked_into(type(module)):
        return False
    if any(isinstance(child, nn.Softmax) for child in module.children()):
        return True
    found = {name for _, function in _methods(module, _looked_into(type(module))) for name in _mentioned(function)}
    return bool(
        found & _SOFTMAX or (found & _QUOTIENTS and found & (_EXPONENTIALS | _PRODUCTS if linear else _EXPONENTIALS))
    )


def _mentioned(function: FunctionType, depth: int = _DEPTH) -> Iterator[str]:
    """Names and operators in the code of a function and of the functions of somebody's own that it calls."""
    function = inspect.unwrap(function)
    yield from _names(function.__code__)
    for _, value in named(function) if depth else ():
        if isinstance(value, FunctionType) and value is not function and not _opaque(value.__module__):
            yield from _mentioned(value, depth - 1)
        elif isinstance(value, ModuleType) and not _opaque(value.__name__):
            for one in (getattr(value, name, None) for name in function.__code__.co_names):
                if isinstance(one, FunctionType) and one is not function and not _opaque(one.__module__):
                    yield from _mentioned(one, depth - 1)


@lru_cache(maxsize=4096)
def _names(code: CodeType) -> frozenset[str]:
    """Of a function and of those that are written within it; read once for all modules of a class."""
    found = set(code.co_names)
    for instruction in dis.get_instructions(code):
        if instruction.opname == "BINARY_OP":
            found.add(instruction.argrepr)
        elif instruction.opname in _OPERATORS:
            found.add(_OPERATORS[instruction.opname])
    return frozenset(found).union(*(_names(constant) for constant in code.co_consts if isinstance(constant, CodeType)))


def _methods(module: nn.Module, kinds: tuple[type, ...] | None = None) -> Iterator[tuple[str, FunctionType]]:
    """The methods in force that classes of this kind add to `nn.Module` or `MessagePassing`."""
    seen: set[str] = set()
    for kind in _own(type(module)) if kinds is None else kinds:
        for name, value in vars(kind).items():
            if name not in seen and isinstance(value, FunctionType) and name not in _NEVER:
                seen.add(name)
                yield name, value


def _own(kind: type) -> tuple[type, ...]:
    """The classes that make a module what it is."""
    mro = kind.__mro__
    if MessagePassing in mro:
        return mro[: mro.index(MessagePassing)]
    return tuple(
        c for c in mro if not library(c.__module__) or c.__module__.startswith("torch_geometric.nn.dense.dense_gat")
    )


def _looked_into(kind: type) -> tuple[type, ...]:
    """Of a `MessagePassing` what is nobody's library; of others the classes of PyG's as well, readouts among them."""
    if issubclass(kind, MessagePassing):
        return tuple(c for c in _own(kind) if not library(c.__module__))
    return tuple(c for c in kind.__mro__ if not _opaque(c.__module__))


def _opaque(name: str) -> bool:
    """True for a module of a library whose functions are known by name."""
    return library(name) and not name.startswith("torch_geometric.")
