"""Stands in the place of a method, a module's ``forward`` by default, and runs it inside a context; no hook, and nothing of it in a copy."""

from __future__ import annotations

import copy
import inspect
import operator
import sys
import types
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any

from torch import nn
from torch.compiler import is_compiling

from gnnstab.probe.attaching.hooks import NOT_SCRIPTED
from gnnstab.torch_private import is_exporting, is_tracing


class Lookalike:
    """Answers for each attribute that it lacks itself (``__name__``, ``__self__``, …) with that of the callable that it masks."""

    __slots__ = ("_masked",)

    _masked: Callable[..., Any]

    @property
    def __signature__(self) -> inspect.Signature:
        """Of the masked callable, for whoever asks what it takes."""
        return inspect.signature(self._masked)

    def __getattr__(self, name: str) -> Any:
        # ``_masked`` may not be there yet, and the compiler guards the ``__dict__`` of the object itself.
        if name in ("_masked", "__dict__"):
            raise AttributeError(name)
        return getattr(self._masked, name)


def method_of_copy(standing: Lookalike, owner: Any, method: str, before: Any, caller: FrameType) -> Any:
    """The method that a shallow copy of ``owner`` would have alone, where one calls that has taken ``standing`` along; else None.

    `copy.copy` and the replicas of ``DataParallel`` take the attributes of an instance as they are; the copy is put right.
    """
    copied = caller.f_locals.get("self")
    if copied is owner or not isinstance(copied, nn.Module) or vars(copied).get(method) is not standing:
        return None
    if before is None:
        del vars(copied)[method]
    else:
        vars(copied)[method] = before
    return getattr(copied, method)


def of_class(owner: Any, method: str) -> Callable[..., Any]:
    """The method of the class, bound as Python binds it, past what stands in the instance."""
    found = next(vars(kind)[method] for kind in type(owner).__mro__ if method in vars(kind))
    bind = getattr(type(found), "__get__", None)
    bound: Callable[..., Any] = found if bind is None else bind(found, owner, type(owner))
    return bound


def own_method(owner: Any, method: str, memo: dict[int, Any]) -> Any:
    """The method of its class for a deep copy of ``owner``, which goes again from the copy's attributes when the copying is over."""
    twin = memo.get(id(owner), owner)
    own = types.MethodType(getattr(type(twin), method), twin)
    if twin is not owner:
        last = _Copied(twin, method, own)
        memo[id(last)] = last  # Nothing else holds it: it dies with the memo.
    return own


class _Copied:
    """Lives as long as a model is being copied."""

    __slots__ = ("_method", "_own", "_twin")

    def __init__(self, twin: Any, method: str, own: Any) -> None:
        self._twin, self._method, self._own = twin, method, own

    def __del__(self) -> None:
        if vars(self._twin).get(self._method) is self._own:
            del vars(self._twin)[self._method]


class StandIn(Lookalike):
    """Runs the module's own forward, or another method, ``within`` a context, then tells ``after`` about the call.

    Some of torch's modules take another way as soon as they have a hook, with results that differ by rounding. This is
    no hook.
    """

    __slots__ = ("_after", "_before", "_found", "_gone", "_method", "_module", "_within")

    def __init__(
        self,
        module: Any,
        within: Callable[[], AbstractContextManager[Any]] | None = None,
        after: Callable[..., None] | None = None,
        method: str = "forward",
    ) -> None:
        self._module = module
        self._within = within
        self._after = after
        self._gone = False
        self._method = method
        self._before = vars(module).get(method)
        self._found = getattr(type(module), method)
        self._masked = self._before or of_class(module, method)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module's own method."""
        if not is_compiling():
            if other := method_of_copy(self, self._module, self._method, self._before, sys._getframe(1)):
                return other(*args, **kwargs)
            if self._before is None and getattr(type(self._module), self._method, None) is not self._found:
                self._found = getattr(type(self._module), self._method)
                self._masked = of_class(self._module, self._method)
        if self._gone or (is_exporting() if is_compiling() else is_tracing()):
            return self._masked(*args, **kwargs)
        if self._within is None or is_compiling():
            output = self._masked(*args, **kwargs)
        else:
            with self._within():
                output = self._masked(*args, **kwargs)
        if self._after is not None:
            self._after(self._module, args, kwargs, output)
        return output

    def __getattr__(self, name: str) -> Any:
        if name == "__globals__":  # The first thing that torch.jit.script asks of a forward.
            raise AttributeError(NOT_SCRIPTED)
        return super().__getattr__(name)

    def put(self) -> StandIn:
        """Stand in the method's place."""
        self._gone = False
        vars(self._module)[self._method] = self
        return self

    def resume(self) -> StandIn:
        """A new one in the place of what the module's method is by now."""
        return StandIn(self._module, self._within, self._after, self._method).put()

    def remove(self) -> None:
        """Leave the module as it was found; below another stand-in this one does nothing until that one goes too."""
        self._gone = True
        if vars(self._module).get(self._method) is not self:
            return
        below = self._before
        while isinstance(below, StandIn) and below._gone:
            below = below._before
        if below is None:
            del vars(self._module)[self._method]
        else:
            vars(self._module)[self._method] = below

    pause = remove

    # A copy or a pickle of the model carries what stood here before, or the class' own method: nothing of gnnstab.

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if self._before is not None:
            return copy.deepcopy(self._before, memo)
        return own_method(self._module, self._method, memo)

    def __reduce__(self) -> Any:
        if self._before is not None:
            return operator.getitem, ((self._before,), 0)
        return getattr, (self._module, self._method)
