"""What of the user's is global to a process stands aside while gnnstab runs copies: hooks, modes and the other processes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from threading import Lock
from typing import Any

import torch
from torch import distributed as dist
from torch.utils import flop_counter

from gnnstab.hook_code import computes
from gnnstab.left_out import left_out
from gnnstab.other_threads import may_draw
from gnnstab.own_draws import OwnDraws
from gnnstab.torch_private import (
    DISPATCH,
    FUNCTION,
    DeviceContext,
    DispatchMode,
    ModeStack,
    dispatch_modes,
    function_modes,
    global_hooks,
    not_compiled,
    without_saved_tensors_hooks,
)
from gnnstab.unheard import unheard

_COUNTERS = frozenset({flop_counter.__name__, "torch.distributed.tensor.debug", "torch.utils._debug_mode"})
"""Modules whose modes only take notes."""

_COLLECTIVES = ("c10d", "_c10d_functional", "_c10d_functional_autograd")

_within: ContextVar[bool] = ContextVar("_within", default=False)

_aside: ContextVar[tuple[Any, ...]] = ContextVar("_aside", default=())
"""The user's modes that are set aside while gnnstab's own code runs; a copy of the model may need them."""


@contextmanager
def undisturbed(asked: bool) -> Iterator[None]:
    """No hook that is registered for all modules or optimizers is called inside, no mode that counts sees an operation, and
    nothing waits for another process. Unless ``asked``, prints, log records and hooks of saved tensors are none of the run's either.

    ``asked``: the user asked for what runs here by a call; hooks and modes that compute something then stay.

    Raises:
        UsageError: Nobody asked, and such a hook or mode is active: without it a copy would compute something else, and
            with it the user's own would be called.
    """
    if _within.get():
        yield
        return
    if not asked and (changes := next(_computing(), "")):
        raise left_out(f"nothing is run on a copy while {changes} is active, which may be a part of what is computed")
    beside = "" if asked else may_draw()
    if beside and any(table for _, table in global_hooks()):
        raise left_out(f"hooks of all modules cannot be set aside for a copy while the thread {beside} may need them")
    token = _within.set(True)
    try:
        with ExitStack() as stack:
            stack.enter_context(_uncompiled())
            if not asked:
                stack.enter_context(unheard(_within))
                stack.enter_context(without_saved_tensors_hooks())
            stack.enter_context(_hooks.aside())
            stack.enter_context(_with(DISPATCH, [mode for mode in DISPATCH.stack() if not _counts(mode)]))
            stack.enter_context(_with(FUNCTION, [*filter(_sets_device, _aside.get()), *FUNCTION.stack()]))
            if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
                stack.enter_context(_OneProcess())  # type: ignore[no-untyped-call]
            if beside:
                stack.enter_context(OwnDraws(beside))
            yield
    finally:
        _within.reset(token)


def modes_aside() -> AbstractContextManager[None]:
    """No mode of the user's sees or changes an operation inside; costs two calls of C code where none is active."""
    if dispatch_modes() or function_modes():
        return without_modes()
    return _NOTHING


_NOTHING = nullcontext()


def nothing_aside() -> bool:
    """True where no mode of the user's is set aside."""
    return not _aside.get()


@contextmanager
def without_modes() -> Iterator[None]:
    """As `modes_aside`, also to decorate a function with."""
    active = [*DISPATCH.stack(), *FUNCTION.stack()]
    token = _aside.set((*_aside.get(), *(mode for mode in active if not _is_own(mode))))
    try:
        with (
            _with(DISPATCH, list(filter(_is_own, DISPATCH.stack()))),
            _with(FUNCTION, list(filter(_is_own, FUNCTION.stack()))),
        ):
            yield
    finally:
        _aside.reset(token)


def _uncompiled() -> AbstractContextManager[None]:
    """What `torch.compile` compiled runs as it was written inside: what the compiler met under the modes of a copy, it would
    leave out of the run's own forwards too. It holds for all threads."""
    if (
        "torch._dynamo.eval_frame" not in sys.modules
    ):  # Nobody has compiled anything, and asking would load the compiler.
        return _NOTHING
    try:
        stance: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    except RuntimeError:  # Compiled code calls this, and its stance cannot be changed within.
        return _NOTHING
    return stance


class _OneProcess(DispatchMode):  # type: ignore[no-untyped-call]
    """Refuses operations that wait for other processes, which go on with the training and run no such operation now."""

    supports_higher_order_operators = True

    @not_compiled
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, unless other processes take part in it."""
        if getattr(func, "namespace", "") in _COLLECTIVES:
            raise left_out(
                f"a copy cannot be run alone: it calls the collective {func}, and would wait for processes that train on"
            )
        return func(*args, **(kwargs or {}))


class _GlobalHooks:
    """The tables of the hooks that torch calls for every module and every optimizer, emptied as long as anybody asks for it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._users = 0
        self._saved: list[tuple[dict[Any, Any], dict[Any, Any]]] = []

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Without those that only note something, inside."""
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._saved = [(table, dict(table)) for _, table in global_hooks() if table]
                for name, table in global_hooks():
                    for key in [key for key, hook in table.items() if not computes(hook, "forward" in name)]:
                        del table[key]
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    for table, before in self._saved:
                        new = {key: hook for key, hook in table.items() if key not in before}
                        table.clear()
                        table.update({**before, **new})
                    self._saved = []


_hooks = _GlobalHooks()


def _computing() -> Iterator[str]:
    """What is active that may change what a model computes."""
    for name, table in global_hooks():
        for hook in table.values():
            if "forward" in name and computes(hook, True):
                yield f"the hook {getattr(hook, '__qualname__', type(hook).__qualname__)} of all modules"
    for mode in (*_aside.get(), *DISPATCH.stack(), *FUNCTION.stack()):
        if not (_is_own(mode) or _counts(mode) or _sets_device(mode)):
            yield f"the mode {type(mode).__qualname__}"


def _is_own(mode: object) -> bool:
    return type(mode).__module__.startswith("gnnstab.")


def _counts(mode: object) -> bool:
    return type(mode).__module__.startswith(tuple(_COUNTERS))


def _sets_device(mode: object) -> bool:
    """Of a default device that computes: what a forward makes lies there."""
    return isinstance(mode, DeviceContext) and mode.device.type != "meta"


@contextmanager
def _with(kind: ModeStack, modes: list[Any]) -> Iterator[None]:
    """With these modes active, the outermost first, and no others."""
    before = kind.stack()
    if len(before) == len(modes):
        yield
        return
    kind.replace(modes)
    try:
        yield
    finally:
        kind.replace(before)
