"""Stands in the place of a module's ``forward`` and runs it inside a context; no hook, and nothing of it in a copy."""

from __future__ import annotations

import copy
import inspect
import operator
import types
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch import nn
from torch.compiler import is_compiling

from gnnstab.probe.attaching.hooks import NOT_SCRIPTED


class StandIn:
    """Runs the module's own forward ``within`` a context, then tells ``after`` about the call.

    Some of torch's modules take another way as soon as they have a hook, with results that differ by rounding. This is
    no hook.
    """

    __slots__ = ("_after", "_before", "_gone", "_module", "_original", "_within")

    def __init__(
        self,
        module: nn.Module,
        within: Callable[[], AbstractContextManager[Any]] | None = None,
        after: Callable[..., None] | None = None,
    ) -> None:
        self._module = module
        self._within = within
        self._after = after
        self._gone = False
        self._before = vars(module).get("forward")
        self._original: Callable[..., Any] = self._before or types.MethodType(type(module).forward, module)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module's own forward."""
        if self._gone:
            return self._original(*args, **kwargs)
        if self._within is None or is_compiling():
            output = self._original(*args, **kwargs)
        else:
            with self._within():
                output = self._original(*args, **kwargs)
        if self._after is not None:
            self._after(self._module, args, kwargs, output)
        return output

    @property
    def __signature__(self) -> inspect.Signature:
        """Of the module's own forward, for whoever asks what it takes."""
        return inspect.signature(self._original)

    def __getattr__(self, name: str) -> Any:
        if name == "__globals__":  # The first thing that torch.jit.script asks of a forward.
            raise AttributeError(NOT_SCRIPTED)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def put(self) -> StandIn:
        """Stand in the forward's place."""
        self._gone = False
        vars(self._module)["forward"] = self
        return self

    def resume(self) -> StandIn:
        """A new one in the place of what the module's forward is by now."""
        return StandIn(self._module, self._within, self._after).put()

    def remove(self) -> None:
        """Leave the module as it was found; below another stand-in this one does nothing until that one goes too."""
        self._gone = True
        if vars(self._module).get("forward") is not self:
            return
        below = self._before
        while isinstance(below, StandIn) and below._gone:
            below = below._before
        if below is None:
            del vars(self._module)["forward"]
        else:
            vars(self._module)["forward"] = below

    pause = remove

    # A copy or a pickle of the model carries what stood here before, or the class' own method: nothing of gnnstab.

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if self._before is not None:
            return copy.deepcopy(self._before, memo)
        twin = memo.get(id(self._module), self._module)
        return types.MethodType(type(twin).forward, twin)

    def __reduce__(self) -> Any:
        if self._before is not None:
            return operator.getitem, ((self._before,), 0)
        return getattr, (self._module, "forward")
