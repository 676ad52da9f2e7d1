"""Lines of the model's own code whose value nothing reads, as its bytecode says: a statement by itself, or a name that is not read again."""

from __future__ import annotations

import dis
import inspect
import itertools
from collections.abc import Iterator, Mapping
from functools import lru_cache
from types import CodeType, FunctionType, MappingProxyType
from typing import NamedTuple

from torch import nn

from gnnstab.probe.operations.source_lines import LIBRARIES

RETURNED = "return"
"""In place of a name: the value is what its function returns; no name is a keyword."""

_MOST = 200
"""Functions that are looked through."""

_SEES_NAMES = frozenset({"locals", "eval", "exec", "breakpoint", "vars"})
"""What may read a name without saying so."""

_EFFECTS = frozenset({
    *("append", "extend", "insert", "update", "setdefault", "pop", "clear", "remove", "print", "super", "__init__", "setattr", "register_buffer"),
    *("debug", "info", "warning", "warn", "log", "add_scalar", "add_histogram", "record", "observe", "backward", "step", "zero_grad"),
})  # fmt: skip
"""Functions that are called for what they do."""

_MAKES = ("BINARY_", "UNARY_", "COMPARE_OP", "CALL")
"""Beginnings of operations that give a value."""

_JUMPS = ("JUMP", "FOR_ITER", "SEND", "RAISE", "SETUP", "YIELD")
"""Parts of the names of operations behind which nobody knows what comes next."""


class _Step(NamedTuple):
    """One instruction."""

    start: int
    """Its offset, in bytes."""

    end: int
    """That behind its caches; a call that runs may stand at any of them."""

    name: str
    number: int


@lru_cache(512)
def unread(code: CodeType) -> Mapping[int, str]:
    """Offset of each operation whose value nothing reads → the name that it is given; empty for none, `RETURNED` where the caller gets it."""
    steps = list(_steps(code))
    found: dict[int, str] = {}
    for at, (step, after) in enumerate(itertools.pairwise(steps)):
        name = None
        if not step.name.startswith(_MAKES):
            continue
        if after.name == "POP_TOP":
            name = ""
        elif after.name == "RETURN_VALUE":
            name = RETURNED
        elif after.name.startswith("STORE_FAST") and _SEES_NAMES.isdisjoint(code.co_names):
            name = _stored(code, steps, at + 1)
        if name == "" and _for_its_effect(code, step.start):
            continue
        if name is not None:
            found |= dict.fromkeys(range(step.start, step.end), name)
    return MappingProxyType(found)


def _for_its_effect(code: CodeType, offset: int) -> bool:
    """True where a line calls something by a name that says that it changes what it is given, or something else."""
    starts = [*dis.findlinestarts(code), (len(code.co_code), None)]
    begin, end = next((a, b) for (a, _), (b, _) in itertools.pairwise(starts) if a <= offset < b)
    named = {i.argval for i in dis.get_instructions(code) if begin <= i.offset < end and i.opname.startswith("LOAD_")}
    return any(
        isinstance(name, str) and (name in _EFFECTS or (name.endswith("_") and name[-2:] != "__")) for name in named
    )


def _steps(code: CodeType) -> Iterator[_Step]:
    """The instructions without what says nothing; the number of one may be spread over those in front of it."""
    raw = code.co_code
    last: _Step | None = None
    begin, number = -1, 0
    for at in range(0, len(raw), 2):
        name = dis.opname[raw[at]]
        if name in ("CACHE", "NOP"):
            continue
        begin = at if begin < 0 else begin
        if name == "EXTENDED_ARG":
            number = (number | raw[at + 1]) << 8
            continue
        if last is not None:
            yield last._replace(end=begin)
        last = _Step(begin, len(raw), name, number | raw[at + 1])
        begin, number = -1, 0
    if last is not None:
        yield last


def _stored(code: CodeType, steps: list[_Step], at: int) -> str | None:
    """The name that a value is given where nothing reads it before the name's next value, or the end; None where something may."""
    number = _numbers(steps[at])[0]
    name = code.co_varnames[number]
    if name.startswith("_") or _loads(steps[at], number):
        return None
    for step in steps[at + 1 :]:
        if any(part in step.name for part in _JUMPS):
            return None if any(_loads(one, number) for one in steps) else name
        if _loads(step, number):
            return None
        if step.name.startswith(("STORE_FAST", "DELETE_FAST")) and _numbers(step)[0] == number:
            return name
    return name


def _numbers(step: _Step) -> tuple[int, ...]:
    """Of the names that an instruction is about: one, or two of four bits each."""
    return (step.number >> 4, step.number & 15) if step.name.count("_FAST") > 1 else (step.number,)


def _loads(step: _Step, number: int) -> bool:
    if step.name.startswith("LOAD_FAST"):
        return number in _numbers(step)
    return step.name.startswith("STORE_FAST_LOAD") and _numbers(step)[1] == number


def codes(model: nn.Module) -> Iterator[CodeType]:
    """Code of the methods of the model's own classes, of functions that its modules hold, and of those that these name."""
    waiting: list[FunctionType] = []
    modules = list(model.modules())
    for kind in dict.fromkeys(part for one in dict.fromkeys(map(type, modules)) for part in one.__mro__):
        if kind.__module__.partition(".")[0] not in (*LIBRARIES, "builtins"):
            methods = {name: getattr(value, "__func__", value) for name, value in vars(kind).items()}
            waiting += [one for name, one in methods.items() if isinstance(one, FunctionType) and name not in _BEFORE]
    waiting += [one for module in modules for one in vars(module).values() if isinstance(one, FunctionType)]
    known: set[int] = set()
    while waiting and len(known) < _MOST:
        function = inspect.unwrap(waiting.pop())
        own = isinstance(function, FunctionType) and (function.__module__ or "").partition(".")[0] not in LIBRARIES
        if not own or id(function) in known:
            continue
        known.add(id(function))
        inner = [function.__code__]
        while inner:
            code = inner.pop()
            yield code
            inner += [one for one in code.co_consts if isinstance(one, CodeType)]
            named = (function.__globals__.get(name) for name in code.co_names)
            waiting += [one for one in named if isinstance(one, FunctionType)]


_BEFORE = frozenset({"__init__", "reset_parameters", "_reset_parameters", "extra_repr", "__repr__"})
"""Methods that no forward calls."""
