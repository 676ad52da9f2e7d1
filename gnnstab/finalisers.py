"""Objects whose class cleans up when they die, as a copy of them would: what it removes is the original's."""

from __future__ import annotations

import sys
import types
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

from gnnstab.errors import UsageError

_PLAIN: frozenset[type] = frozenset((bool, int, float, complex, str, bytes, type(None), types.FunctionType, types.BuiltinFunctionType, types.ModuleType))  # fmt: skip

_KEPT: tuple[type, ...] = (type, *_PLAIN)


def refuse_finalisers(value: Any, memo: Mapping[int, Any] | None = None) -> None:
    """Look through all that `copy.deepcopy` would copy; ``memo`` holds what it would not.

    Raises:
        UsageError: Something in it has a ``__del__``.
    """
    waiting, seen = [value], set(memo or ())
    slots: dict[type, list[str] | None] = {}
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        kind = type(one)
        if kind not in slots:
            slots[kind] = _slots_to_copy(kind)
        known = slots[kind]
        if known is not None:
            parts = one.values() if kind is dict else one if kind is list else _parts(one, known)
            waiting += [part for part in parts if type(part) not in _PLAIN]


def _slots_to_copy(kind: type) -> list[str] | None:
    """Names of the slots of a class; None of one whose objects are not gone through.

    Raises:
        UsageError: It has a ``__del__``.
    """
    if kind.__module__.partition(".")[0] == "gnnstab" and hasattr(kind, "__deepcopy__"):
        return None  # What stands in for a method knows the module that it comes from, and copies nothing of it.
    if (owner := _with_finaliser(kind)) is not None:
        raise UsageError(
            f"a copy of {kind.__name__} would clean up what belongs to the run when it is thrown away: {owner.__name__} has a __del__"
        )
    return None if issubclass(kind, _KEPT) else slots_of(kind)


def _with_finaliser(kind: type) -> type | None:
    owner = next((c for c in kind.__mro__ if "__del__" in vars(c)), None)
    return None if owner is None or owner.__module__.partition(".")[0] in _STANDARD else owner


def slots_of(kind: type) -> list[str]:
    """The names of a class's slots, those of its bases included."""
    if (known := _SLOTS.get(kind)) is None:
        known = _SLOTS[kind] = [
            n for c in kind.__mro__ for n, slot in vars(c).items() if isinstance(slot, types.MemberDescriptorType)
        ]
    return known


_SLOTS: weakref.WeakKeyDictionary[type, list[str]] = weakref.WeakKeyDictionary()


_STANDARD = sys.stdlib_module_names - {"__main__"}
"""Of these a copy cleans up after itself alone, or there is none."""


def _parts(value: Any, slots: list[str]) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from value
    elif isinstance(value, types.MethodType):
        yield value.__self__
    yield from getattr(value, "__dict__", {}).values()
    for name in slots:
        if hasattr(value, name):
            yield getattr(value, name)
