"""Sees the scores exactly where ``softmax`` receives them inside a method of a layer, without changing a class.

A tap stands in the place of the method in the instance: ``conv.message``, ``conv.edge_update``, or the method of a
helper, wherever the layer's adapter says that softmax is called. It runs the layer's own code object; only the name
``softmax`` means something else to it: a wrapper that notes its input and output. So scores and weights are the layer's
own, bit for bit, with nothing computed twice.
"""

from __future__ import annotations

import copy
import operator
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from torch.compiler import is_compiling, is_dynamo_compiling

from gnnstab.errors import let_through
from gnnstab.layers import Layer, layer_of
from gnnstab.probe.attaching._twins import Code, Notes, Rest, observed
from gnnstab.probe.attaching._twins import Untappable as Untappable
from gnnstab.probe.attaching.stand_in import Lookalike, method_of_copy, of_class, own_method
from gnnstab.torch_private import dispatch_modes, is_exporting, is_jit_tracing, is_tracing


@dataclass(slots=True)
class SoftmaxCall:
    """One softmax over edges; alive only until the layer returns."""

    score: Tensor
    """(E, H) what softmax received."""

    attention: Tensor
    """(E, H) what it returned."""

    index: Tensor | None
    """(E,) target node of every edge."""

    size: int | None = None
    """Number of targets, where softmax was told."""


class Listener(Protocol):
    """Who wants to know what a tap sees, within the modes of the user's."""

    def saw(self, seen: SoftmaxCall) -> None:
        """Called once per softmax, in eager execution."""

    def failed(self, error: Exception) -> None:
        """Called when one of the above raised; nothing more is said to this listener."""

    def returned(self, message: Tensor) -> None:
        """Called with what ``message`` returned, (E, H, C), in eager execution, where softmax is called in ``message``."""

    def saw_compiled(self, score: Tensor, attention: Tensor | None) -> None:
        """Called while `torch.compile` traces the layer; may only write into preallocated tensors."""


@dataclass(slots=True)
class Twin:
    """The twin of a method, and what it rests on; apart from the tap, whose attributes cost more since it answers for those that it lacks."""

    owner: nn.Module
    method: str
    before: Any
    """What stood in the owner; None for the method of its class."""

    kind: type
    """Class of the owner."""

    original: types.FunctionType
    rests: list[Rest]
    runs: list[Code]
    function: Callable[..., Any]

    def stands(self) -> bool:
        """False as soon as the twin is no twin any more: of a class, a method, a softmax or a code object that was replaced."""
        if type(self.owner) is not self.kind:
            return False
        if self.before is None and getattr(self.kind, self.method, None) is not self.original:
            return False
        for space, name, value in self.rests:
            if space.get(name) is not value:
                return False
        for function, code, defaults in self.runs:
            if function.__code__ is not code or function.__defaults__ is not defaults:
                return False
        return True


class Tap(Lookalike):
    """Stands in for the method that calls softmax; shared by everybody who listens to this layer.

    Raises:
        Untappable: The method is no plain function, or calls no ``softmax`` that can be observed.
    """

    __slots__ = (
        "_before",
        "_kind",
        "_listeners",
        "_method",
        "_module",
        "_owner",
        "_place",
        "_traced",
        "_twin",
    )

    def __init__(self, module: nn.Module, kind: Layer, place: str) -> None:
        self._module = module
        self._kind = kind
        self._owner, self._method = _owner_of(module, place)
        self._before = self._owner.__dict__.get(self._method)
        self._listeners: tuple[Listener, ...] = ()
        self._place = place
        self._build()

    def _build(self) -> None:
        """Make a twin of what the method is by now.

        Raises:
            Untappable: There is nothing to look at; the tap is as it was before.
        """
        original, bound = _function_of(self._owner, self._method, self._before)
        rests, runs = list[Rest](), list[Code]()
        twin = observed(original, self._owner, self._method, Notes(self._notice, rests, runs))
        self._masked = self._before or types.MethodType(original, self._owner)
        self._traced = self._kind.repeats(original)
        # Bound by hand: a function that somebody put into the instance takes no ``self``.
        function = types.MethodType(twin, self._owner) if bound else twin
        self._twin = Twin(self._owner, self._method, self._before, type(self._owner), original, rests, runs, function)

    def _renewed(self) -> bool:
        """True where the twin of what was replaced can be made; else the layer runs unseen as long as that stays."""
        try:
            self._build()
        except Exception as error:
            let_through(error)
            return False
        return True

    @classmethod
    def attach(cls, module: nn.Module, listener: Listener, former: Tap | None = None, kind: Layer | None = None) -> Tap:
        """Listen to a layer, through the tap that is there, the ``former`` one where it still fits, or a new one."""
        tap = cls._fitting(module, former, kind or layer_of(module))
        tap._listeners = (*tap._listeners, listener)
        tap._owner.__dict__[tap._method] = tap
        return tap

    @classmethod
    def _fitting(cls, module: nn.Module, former: Tap | None, kind: Layer | None) -> Tap:
        if kind is None:
            raise Untappable(f"{type(module).__name__} is no attention layer that gnnstab knows")
        reasons: list[Untappable] = []
        for place in kind.softmax_in:
            try:
                owner, method = _owner_of(module, place)
                present = owner.__dict__.get(method)
                if isinstance(present, Tap):
                    return present
                if former is not None and former._stands_in_for(owner, method, present):
                    return former
                return cls(module, kind, place)
            except Untappable as reason:
                reasons.append(reason)
        raise reasons[0]

    def _stands_in_for(self, owner: nn.Module, method: str, present: Any) -> bool:
        return owner is self._owner and method == self._method and present is self._before and self._twin.stands()

    def detach(self, listener: Listener) -> None:
        """Stop listening; with the last listener the layer is as it was."""
        self._listeners = tuple(one for one in self._listeners if one is not listener)
        if self._listeners or self._owner.__dict__.get(self._method) is not self:
            return
        if self._before is None:
            del self._owner.__dict__[self._method]
        else:
            self._owner.__dict__[self._method] = self._before

    def replace(self, method: Callable[..., Any]) -> None:
        """Let something else, which calls the tap, stand in its place; for a copy that is thrown away."""
        self._owner.__dict__[self._method] = method

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer's own method."""
        if is_dynamo_compiling() or ((modes := dispatch_modes()) and is_compiling()):
            return (self._masked if is_exporting() else self._compiled)(*args, **kwargs)
        twin = self._twin
        if other := method_of_copy(self, twin.owner, twin.method, twin.before, sys._getframe(1)):
            return other(*args, **kwargs)
        try:
            fits = twin.stands() or self._renewed()
        except Exception as error:
            let_through(error)
            for listener in self._listeners:
                self._silence(listener, error)
            fits = False
        if not fits:
            return (self._before or of_class(self._owner, self._method))(*args, **kwargs)
        if is_jit_tracing() or (modes and is_tracing()):
            return self._masked(*args, **kwargs)
        out = self._twin.function(*args, **kwargs)
        if self._place == "message":
            for listener in self._listeners:
                try:
                    listener.returned(out)
                except Exception as error:
                    let_through(error)
                    self._silence(listener, error)
        return out

    def _notice(self, score: Tensor, attention: Tensor, index: Tensor | None, size: int | None) -> None:
        seen = SoftmaxCall(score, attention, index, size)
        for listener in self._listeners:
            try:
                listener.saw(seen)
            except Exception as error:
                let_through(error)
                self._silence(listener, error)

    def _silence(self, listener: Listener, error: Exception) -> None:
        self._listeners = tuple(one for one in self._listeners if one is not listener)
        listener.failed(error)

    def _compiled(self, *args: Any, **kwargs: Any) -> Any:
        # The twin's own globals defeat the compiler's guards, so here the original runs and the scores are computed
        # once more from what it was given; the compiler finds the common work.
        if isinstance(self._twin.function, types.MethodType):
            out = self._twin.original(self._owner, *args, **kwargs)
        else:
            out = self._twin.original(*args, **kwargs)
        if self._traced:
            score, attention = self._kind.traced_scores(self._module, *args, **kwargs)
            for listener in self._listeners:
                listener.saw_compiled(score, attention)
        return out

    # A copy or a pickle of the model carries what stood here before, or the class' own method: nothing of gnnstab.

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if self._before is not None:
            return copy.deepcopy(self._before, memo)
        return own_method(self._owner, self._method, memo)

    def __reduce__(self) -> Any:
        if self._before is not None:
            return operator.getitem, ((self._before,), 0)
        return getattr, (self._owner, self._method)


def _owner_of(module: nn.Module, place: str) -> tuple[nn.Module, str]:
    """Whose method a place is: ``message`` of the layer itself, ``aggr_module.forward`` of a helper."""
    path, _, method = place.rpartition(".")
    try:
        return operator.attrgetter(path)(module) if path else module, method
    except AttributeError:
        raise Untappable(f"{type(module).__name__} has no {path}") from None


def _function_of(owner: nn.Module, method: str, before: Any) -> tuple[types.FunctionType, bool]:
    """The function behind a method, and whether it takes the owner as its first argument."""
    found, bound = before, False
    if found is None:
        found, bound = getattr(type(owner), method, None), True
    if isinstance(found, types.MethodType) and found.__self__ is owner:
        found, bound = found.__func__, True
    if not isinstance(found, types.FunctionType):
        raise Untappable(f"{type(owner).__name__}.{method} is no plain function but a {type(found).__name__}")
    return found, bound
