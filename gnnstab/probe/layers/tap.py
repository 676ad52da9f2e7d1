"""Sees the scores exactly where ``softmax`` receives them inside a layer's ``message``, without changing a class.

A tap stands as ``conv.message`` in the instance. It runs the layer's own code object; only the name ``softmax`` means
something else to it: a wrapper that notes its input and output. So scores and weights are the layer's own, bit for
bit, with nothing computed twice.
"""

from __future__ import annotations

import dis
import math
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from torch.compiler import is_compiling
from torch_geometric.nn import TransformerConv
from torch_geometric.utils import softmax


@dataclass(slots=True)
class Seen:
    """One softmax over edges; alive only until the layer returns."""

    score: Tensor
    """(E, H) what softmax received."""

    attention: Tensor
    """(E, H) what it returned."""

    index: Tensor | None
    """(E,) target node of every edge."""


class Listener(Protocol):
    """Who wants to know what a tap sees."""

    def saw(self, seen: Seen) -> None:
        """Called once per softmax, in eager execution."""

    def failed(self, error: Exception) -> None:
        """Called when one of the above raised; nothing more is said to this listener."""

    def returned(self, message: Tensor) -> None:
        """Called with what ``message`` returned, (E, H, C), in eager execution."""

    def saw_compiled(self, score: Tensor, attention: Tensor | None) -> None:
        """Called while `torch.compile` traces the layer; may only write into preallocated tensors."""


class Untappable(Exception):
    """The layer's ``message`` offers no place to look; the text says why."""


class Tap:
    """Stands in for ``conv.message``; shared by everybody who listens to this layer.

    Raises:
        Untappable: ``message`` is no plain function, or calls no ``softmax`` that can be observed.
    """

    __slots__ = ("_before", "_conv", "_function", "_listeners", "_original", "_plain")

    def __init__(self, conv: nn.Module) -> None:
        self._conv = conv
        self._before = conv.__dict__.get("message")
        self._listeners: tuple[Listener, ...] = ()
        self._original = _message_of(conv, self._before)
        self._plain = self._original is TransformerConv.message
        self._function = _observed(self._original, conv, self._notice)

    @classmethod
    def attach(cls, conv: nn.Module, listener: Listener, former: Tap | None = None) -> Tap:
        """Listen to a layer, through the tap that is there, the ``former`` one where it still fits, or a new one."""
        present = conv.__dict__.get("message")
        if isinstance(present, Tap):
            tap = present
        elif former is not None and present is former._before and former._original is _message_of(conv, present):
            tap = former
        else:
            tap = cls(conv)
        tap._listeners = (*tap._listeners, listener)
        conv.__dict__["message"] = tap
        return tap

    def detach(self, listener: Listener) -> None:
        """Stop listening; with the last listener the layer is as it was."""
        self._listeners = tuple(one for one in self._listeners if one is not listener)
        if self._listeners or self._conv.__dict__.get("message") is not self:
            return
        if self._before is None:
            del self._conv.__dict__["message"]
        else:
            self._conv.__dict__["message"] = self._before

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer's own ``message``."""
        if is_compiling():
            return self._compiled(*args, **kwargs)
        message = self._function(self._conv, *args, **kwargs)
        for listener in self._listeners:
            try:
                listener.returned(message)
            except Exception as error:
                self._silence(listener, error)
        return message

    def _notice(self, score: Tensor, attention: Tensor, index: Tensor | None) -> None:
        seen = Seen(score, attention, index)
        for listener in self._listeners:
            try:
                listener.saw(seen)
            except Exception as error:
                self._silence(listener, error)

    def _silence(self, listener: Listener, error: Exception) -> None:
        self._listeners = tuple(one for one in self._listeners if one is not listener)
        listener.failed(error)

    def _compiled(self, *args: Any, **kwargs: Any) -> Any:
        # The twin's own globals defeat the compiler's guards, so here the original runs and the scores are computed
        # once more from what it was given; the compiler finds the common work.
        conv: Any = self._conv
        out = self._original(conv, *args, **kwargs)
        if self._plain:
            score = plain_scores(conv, **kwargs)
            for listener in self._listeners:
                listener.saw_compiled(score, conv._alpha)
        return out

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copy = memo.get(id(self._conv), self._conv)
        return types.MethodType(type(copy).message, copy)

    def __reduce__(self) -> Any:
        return getattr, (self._conv, "message")


def plain_scores(conv: Any, *, query_i: Tensor, key_j: Tensor, edge_attr: Tensor | None = None, **rest: Any) -> Tensor:
    """(E, H) scores by the arithmetic of `TransformerConv.message`, operation by operation."""
    if conv.lin_edge is not None:
        key_j = key_j + conv.lin_edge(edge_attr).view(-1, conv.heads, conv.out_channels)
    score: Tensor = (query_i * key_j).sum(dim=-1) / math.sqrt(conv.out_channels)
    return score


def _message_of(conv: nn.Module, before: Any) -> types.FunctionType:
    """The function behind ``conv.message``."""
    found = before if before is not None else getattr(type(conv), "message", None)
    if isinstance(found, types.MethodType) and found.__self__ is conv:
        found = found.__func__
    if not isinstance(found, types.FunctionType):
        raise Untappable(f"{type(conv).__name__}.message is no plain function but a {type(found).__name__}")
    return found


def _globals(module: dict[str, Any], replaced: dict[str, Any]) -> dict[str, Any]:
    """Some names of a module replaced, all others looked up in the module itself at the time of the call."""
    # The lookup is the dictionary's own method, so that a missing name costs no call of a Python function.
    kind = type("_Globals", (dict,), {"__missing__": staticmethod(module.__getitem__)})
    found: dict[str, Any] = kind(replaced)
    return found


def _observed(function: types.FunctionType, conv: nn.Module, notice: Callable[..., None]) -> types.FunctionType:
    """A twin of ``function`` to which ``softmax`` means the wrapper that notes."""
    code = function.__code__
    if any(instruction.opname in ("STORE_GLOBAL", "DELETE_GLOBAL") for instruction in dis.get_instructions(code)):
        raise Untappable(f"{function.__qualname__} assigns a global variable")
    replaced: dict[str, Any] = {}
    for name in code.co_names:
        if function.__globals__.get(name) is softmax:
            replaced[name] = _noting(softmax, notice)
    if "super" in code.co_names and "super" not in function.__globals__:
        parent = _parent_message(function, conv, notice)
        if parent is not None:
            replaced["super"] = parent
    if not replaced:
        raise Untappable(f"{function.__qualname__} calls no torch_geometric.utils.softmax by a global name")
    twin = types.FunctionType(
        code, _globals(function.__globals__, replaced), function.__name__, function.__defaults__, function.__closure__
    )
    twin.__kwdefaults__ = function.__kwdefaults__
    return twin


def _noting(original: Any, notice: Callable[..., None]) -> Callable[..., Tensor]:
    def softmax(src: Tensor, index: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        out: Tensor = original(src, index, *args, **kwargs)
        notice(src, out, index)
        return out

    return softmax


def _parent_message(
    function: types.FunctionType, conv: nn.Module, notice: Callable[..., None]
) -> Callable[..., Any] | None:
    """A ``super`` for ``function`` whose ``message`` is the observed twin of the parent's; None when it has none."""
    owner = next((cls for cls in type(conv).__mro__ if cls.__dict__.get("message") is function), None)
    if owner is None:
        return None
    mro = type(conv).__mro__
    parent = next((c.__dict__["message"] for c in mro[mro.index(owner) + 1 :] if "message" in c.__dict__), None)
    if not isinstance(parent, types.FunctionType):
        return None
    try:
        twin = _observed(parent, conv, notice)
    except Untappable:
        return None
    above = _Above(super(owner, conv), types.MethodType(twin, conv))
    return lambda *args: above if not args or args == (owner, conv) else super(*args)


class _Above:
    """What ``super()`` returns to an observed function: the real one, except for ``message``."""

    __slots__ = ("_real", "message")

    def __init__(self, real: Any, message: Callable[..., Any]) -> None:
        self._real = real
        self.message = message

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)
