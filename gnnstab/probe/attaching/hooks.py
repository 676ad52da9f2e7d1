"""Hooks that cannot hurt: guarded, absent from copies of the model, and gone after `remove`."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from time import perf_counter
from typing import Any

from torch import is_grad_enabled, jit, nn
from torch.compiler import is_compiling, is_dynamo_compiling
from torch.utils.hooks import RemovableHandle

from gnnstab.errors import GnnstabError, let_through
from gnnstab.probe.error_guard import ErrorGuard
from gnnstab.torch_private import (
    dispatch_modes,
    function_modes,
    is_exporting,
    is_jit_tracing,
    is_tracing,
    set_grad_enabled,
)
from gnnstab.undisturbed import without_modes


def ignore(*args: Any, **kwargs: Any) -> None:
    """Do nothing; this is what a hook becomes after a failure."""


def hookable(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Path and module of all modules but scripted and traced ones, which run no Python code and refuse hooks."""
    return ((name, m) for name, m in model.named_modules() if not isinstance(m, jit.ScriptModule))


_NOTHING: Callable[..., None] = nullcontext().__exit__
"""What a hook becomes in a copy of the model and in a pickle: the standard library's own way to do nothing with any
arguments, so that neither holds anything of gnnstab and both can be loaded without it."""

NOT_SCRIPTED = (
    "torch.jit.script compiles the hooks of a model with it, and gnnstab's are Python; script the model before the monitor is attached, "
    "or after it has ended"
)


class Hook:
    """A module or tensor hook around ``body``.

    ``body`` runs with gradients switched off and gets whether they were on as its first argument. It returns nothing,
    so it can change neither inputs nor outputs nor gradients. When it fails, the failure is noted and it is not called
    again. While ``skip`` answers True nothing is done. A copied or pickled model carries a call that does nothing in its
    place: an averaged copy of a model is not the model.
    """

    __slots__ = ("_body", "_clock", "_error_guard", "_skip", "_where", "compiled")

    def __init__(
        self,
        where: str,
        body: Callable[..., object],
        error_guard: ErrorGuard,
        compiled: Callable[..., object] = ignore,
        clock: list[float] | None = None,
        skip: Callable[[], bool] | None = None,
    ) -> None:
        self._where = where
        self._skip = skip
        self._clock = clock
        self._body = body
        self._error_guard = error_guard
        self.compiled = compiled
        """Called instead of ``body`` while `torch.compile` traces the model."""

    def __call__(self, *args: Any) -> None:
        """Run the body, guarded."""
        if is_dynamo_compiling():
            self._traced(*args)
            return
        # `torch.jit.trace` and `make_fx` would write down what gnnstab computes as a part of the model.
        if dispatch_modes() or function_modes():
            if is_compiling():
                self._traced(*args)
            elif not is_tracing():
                with without_modes():
                    self._run(*args)
        elif not is_jit_tracing():
            self._run(*args)

    def _traced(self, *args: Any) -> None:
        if not is_exporting():  # An exported program is kept and deployed; it holds nothing of gnnstab.
            self.compiled(*args)

    def _run(self, *args: Any) -> None:
        clock = self._clock
        if clock is not None:
            clock[0] -= perf_counter()
        grad, skip = is_grad_enabled(), self._skip
        if grad:
            set_grad_enabled(False)
        try:
            if skip is None or not skip():
                self._body(grad, *args)
        except Exception as error:
            let_through(error)
            self.close()
            self._error_guard.note(self._where, error)
        finally:
            if grad:
                set_grad_enabled(True)
            if clock is not None:
                clock[0] += perf_counter()

    @property
    def __name__(self) -> str:
        """The first thing that torch.jit.script asks of a hook; no ``__getattr__``, which slows every attribute down."""
        raise AttributeError(NOT_SCRIPTED)

    def close(self) -> None:
        """Turn the hook into one that does nothing and references nothing."""
        self._body = self.compiled = ignore
        self._skip = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return _NOTHING

    def __copy__(self) -> Callable[..., None]:
        return _NOTHING

    def __reduce__(self) -> str | tuple[Any, ...]:
        return getattr, (nullcontext(), "__exit__")


_TABLES = {
    "_forward_hooks": ("_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    "_forward_pre_hooks": ("_forward_pre_hooks_with_kwargs",),
}
"""Table of hooks → tables of flags with the same keys."""


def keep_out_of_copies(module: nn.Module) -> None:
    """Have copies and pickles of a module carry no entry for the hooks of gnnstab, as long as it has any: to be called after each change.

    What looks at all hooks of a copy (`torch.jit.script`, loading with ``weights_only``) then finds those of the user alone.
    """
    for kind, flags in _TABLES.items():
        hooks = vars(module)[kind]
        own = any(isinstance(hook, Hook) for hook in hooks.values())
        for table in (hooks, *(vars(module)[flag] for flag in flags)):
            # Attributes of the table itself: user's handles know this table, so that no other can take its place.
            ways = {
                "__deepcopy__": partial(_deep_copied, table, hooks),
                "__reduce_ex__": partial(_reduced, table, hooks),
            }
            if own:
                vars(table).update(ways)
            else:
                for name in ways:
                    vars(table).pop(name, None)


def _of_the_user(table: dict[int, Any], hooks: dict[int, Any]) -> list[tuple[int, Any]]:
    return [(key, value) for key, value in table.items() if key in hooks and not isinstance(hooks[key], Hook)]


def _deep_copied(table: dict[int, Any], hooks: dict[int, Any], memo: dict[int, Any]) -> dict[int, Any]:
    twin: OrderedDict[int, Any] = OrderedDict()
    memo[id(table)] = twin
    twin.update((key, copy.deepcopy(value, memo)) for key, value in _of_the_user(table, hooks))
    return twin


def _reduced(table: dict[int, Any], hooks: dict[int, Any], protocol: int) -> tuple[Any, ...]:
    return OrderedDict, (), None, None, iter(_of_the_user(table, hooks))


def take_off(whose: str, handles: list[RemovableHandle], hooks: Iterable[Hook], error_guard: ErrorGuard) -> None:
    """Remove hooks for good; that somebody else has taken one of them off before is noted under ``whose`` they were."""
    if any(handle.id not in (handle.hooks_dict_ref() or ()) for handle in handles):
        error_guard.note(whose, GnnstabError("they were removed during the run, and what came after was not seen"))
    for handle in handles:
        handle.remove()
    for hook in hooks:
        hook.close()
    handles.clear()


class Placed:
    """A forward hook that can be taken off its module and put back, at the price of one dictionary operation.

    Taken off, it costs nothing: a module without hooks is called on torch's short way.
    """

    __slots__ = ("_handle", "_hook", "_module", "_table")

    def __init__(self, module: nn.Module, hook: Hook, *, with_kwargs: bool = False) -> None:
        self._hook = hook
        self._table = module._forward_hooks
        self._module = module
        self._handle = module.register_forward_hook(hook, with_kwargs=with_kwargs)
        keep_out_of_copies(module)

    def pause(self) -> None:
        """Take the hook off.

        The mark that it takes keyword arguments stays: another thread may be on its way to call it.
        """
        self._table.pop(self._handle.id, None)

    def resume(self) -> Placed:
        """Put the hook back, as the last of its module."""
        self._table[self._handle.id] = self._hook
        return self

    def remove(self) -> None:
        """Take the hook off for good."""
        self._handle.remove()
        keep_out_of_copies(self._module)
