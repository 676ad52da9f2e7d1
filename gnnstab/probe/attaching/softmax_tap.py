"""Sees the scores exactly where ``softmax`` receives them inside a method of a layer, without changing a class.

A tap stands in the place of the method in the instance: ``conv.message``, ``conv.edge_update``, or the method of a
helper, wherever the layer's adapter says that softmax is called. It runs the layer's own code object; only the name
``softmax`` means something else to it: a wrapper that notes its input and output. So scores and weights are the layer's
own, bit for bit, with nothing computed twice.
"""

from __future__ import annotations

import copy
import dis
import operator
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling, is_dynamo_compiling

from gnnstab.errors import let_through
from gnnstab.layers import Layer, layer_of
from gnnstab.probe.attaching._softmax_calls import calls_edge_softmax, edge_softmax, helper, named, softmax_within
from gnnstab.probe.attaching.stand_in import Lookalike, method_of_copy, own_method
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


class Untappable(Exception):
    """The layer offers no place to look; the text says why."""


class Tap(Lookalike):
    """Stands in for the method that calls softmax; shared by everybody who listens to this layer.

    Raises:
        Untappable: The method is no plain function, or calls no ``softmax`` that can be observed.
    """

    __slots__ = (
        "_before",
        "_function",
        "_kind",
        "_listeners",
        "_method",
        "_module",
        "_original",
        "_owner",
        "_returns",
        "_traced",
    )

    def __init__(self, module: nn.Module, kind: Layer, place: str) -> None:
        self._module = module
        self._kind = kind
        self._owner, self._method = _owner_of(module, place)
        self._before = self._owner.__dict__.get(self._method)
        self._listeners: tuple[Listener, ...] = ()
        self._original, bound = _function_of(self._owner, self._method, self._before)
        self._masked = self._before or types.MethodType(self._original, self._owner)
        self._traced = kind.repeats(self._original)
        self._returns = place == "message"
        twin = _observed(self._original, self._owner, self._method, self._notice)
        # Bound by hand: a function that somebody put into the instance takes no ``self``.
        self._function: Callable[..., Any] = types.MethodType(twin, self._owner) if bound else twin

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
        same = owner is self._owner and method == self._method and present is self._before
        return same and self._original is _function_of(owner, method, present)[0]

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
        if other := method_of_copy(self, self._owner, self._method, self._before, sys._getframe(1)):
            return other(*args, **kwargs)
        if is_jit_tracing() or (modes and is_tracing()):
            return self._masked(*args, **kwargs)
        out = self._function(*args, **kwargs)
        if self._returns:
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
        if isinstance(self._function, types.MethodType):
            out = self._original(self._owner, *args, **kwargs)
        else:
            out = self._original(*args, **kwargs)
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


def _globals(module: dict[str, Any], replaced: dict[str, Any]) -> dict[str, Any]:
    """Some names of a module replaced, all others looked up in the module itself at the time of the call."""
    # The lookup is the dictionary's own method, so that a missing name costs no call of a Python function.
    kind = type("_Globals", (dict,), {"__missing__": staticmethod(module.__getitem__)})
    found: dict[str, Any] = kind(replaced)
    return found


def _observed(
    function: types.FunctionType, owner: nn.Module, method: str, notice: Callable[..., None]
) -> types.FunctionType:
    """A twin of ``function`` to which ``softmax`` means the wrapper that notes."""
    code = function.__code__
    if any(instruction.opname in ("STORE_GLOBAL", "DELETE_GLOBAL") for instruction in dis.get_instructions(code)):
        raise Untappable(f"{function.__qualname__} assigns a global variable")
    replaced: dict[str, Any] = {}
    for name, value in named(function):
        if (seen := _seen(value, code.co_names, owner, notice)) is not None:
            replaced[name] = seen
    if "super" in code.co_names and "super" not in function.__globals__:
        parent = _parent(function, owner, method, notice)
        if parent is not None:
            replaced["super"] = parent
    closure = function.__closure__
    if not replaced:
        closure = _within(function, method, owner, notice)
    if not replaced and closure is None:
        raise Untappable(f"{function.__qualname__} calls no softmax over edges by a global name")
    twin = types.FunctionType(
        code, _globals(function.__globals__, replaced), function.__name__, function.__defaults__, closure
    )
    twin.__kwdefaults__ = function.__kwdefaults__
    return twin


def _seen(
    value: Any, names: tuple[str, ...], owner: nn.Module, notice: Callable[..., None], further: bool = True
) -> Any:
    """What a global of an observed function is replaced with; None for one that has nothing to do with softmax."""
    if edge_softmax(value):
        return _noting(value, notice)
    if isinstance(value, types.ModuleType) and softmax_within(value, names):
        space = types.ModuleType(value.__name__)
        vars(space).update(vars(value))
        for name in names:
            found = getattr(value, name, None)
            # ``torch_geometric.utils.softmax`` is two steps away; packages refer to each other in circles.
            if edge_softmax(found) or (further and isinstance(found, types.ModuleType) and found is not value):
                setattr(space, name, _seen(found, names, owner, notice, False) or found)
        return space
    if helper(value) and calls_edge_softmax(value):
        return _observed(value, owner, value.__name__, notice)
    return None


def _noting(original: Any, notice: Callable[..., None]) -> Callable[..., Tensor]:
    def softmax(src: Tensor, index: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        out: Tensor = original(src, index, *args, **kwargs)
        ptr = args[0] if args else kwargs.get("ptr")
        size = args[1] if len(args) > 1 else kwargs.get("num_nodes")
        if index is None and ptr is not None:
            size, index = len(ptr) - 1, _spread(ptr, len(src))
        notice(src, out, index, size)
        return out

    return softmax


def _spread(ptr: Tensor, rows: int) -> Tensor:
    """(E,) group of every row, from where the groups begin."""
    groups = torch.arange(len(ptr) - 1, device=ptr.device)
    return groups.repeat_interleave(ptr.diff(), output_size=rows)


def _within(function: types.FunctionType, method: str, owner: nn.Module, notice: Callable[..., None]) -> Any:
    """What a decorated function closes over, with the observed twin in the place of the function that was decorated."""
    inner = getattr(function, "__wrapped__", None)
    cells = function.__closure__ or ()
    if not isinstance(inner, types.FunctionType) or not any(cell.cell_contents is inner for cell in cells):
        return None
    twin = _observed(inner, owner, method, notice)
    return tuple(types.CellType(twin) if cell.cell_contents is inner else cell for cell in cells)


def _parent(
    function: types.FunctionType, owner: nn.Module, method: str, notice: Callable[..., None]
) -> Callable[..., Any] | None:
    """A ``super`` for ``function`` whose method of that name is the observed twin of the parent's; None when it has none."""
    mro = type(owner).__mro__
    home = next((cls for cls in mro if cls.__dict__.get(method) is function), None)
    if home is None:
        return None
    above = next((c.__dict__[method] for c in mro[mro.index(home) + 1 :] if method in c.__dict__), None)
    if not isinstance(above, types.FunctionType):
        return None
    try:
        twin = _observed(above, owner, method, notice)
    except Untappable:
        return None
    stand_in = _Above(super(home, owner), method, types.MethodType(twin, owner))
    return lambda *args: stand_in if not args or args == (home, owner) else super(*args)


class _Above:
    """What ``super()`` returns to an observed function: the real one, except for one method."""

    def __init__(self, real: Any, method: str, observed: Callable[..., Any]) -> None:
        self._real = real
        self.__dict__[method] = observed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)
