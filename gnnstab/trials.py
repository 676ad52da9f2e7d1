"""A trial on copies: what a forward, its loss and its backward change outside of them is put back when all of it is over."""

from __future__ import annotations

import functools
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

from gnnstab.errors import let_through

PutBack = Callable[[], None]

Handler = Callable[[int, Any], Any]

_running: ContextVar[tuple[_Trial, ...]] = ContextVar("_running", default=())
"""The outermost first."""


class _Trial:
    def __init__(self) -> None:
        self.known: dict[int, Any] = {}
        """What is about to run, or ran; held, since an id is used again once its object is gone."""

        self.back: list[PutBack] = []
        self.looks: list[Callable[[], PutBack]] = []
        """What `back` was found by, each in its place."""

        self._busy = False
        self._waiting: list[tuple[Handler, int, Any]] = []
        self._handlers: list[tuple[int, Handler, Handler]] = []
        """Signal, handler, and what stands in its place."""

    def add(self, called: Any, look: Callable[[], PutBack], back: PutBack) -> None:
        """Put back what ``look`` has found when the trial is over."""
        self.known[id(called)] = called
        self.back.append(back)
        self.looks.append(look)

    @contextmanager
    def settling(self) -> Iterator[None]:
        """State is looked at, or put back: a signal's handler waits until that is over."""
        self._busy = True
        try:
            yield
        finally:
            self._busy = False
        self._handle_waiting()

    def watch_signals(self) -> None:
        """From here on a handler of the user's finds, and changes, the run's own state."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in signal.valid_signals():
            handler = signal.getsignal(number)
            if callable(handler) and handler is not signal.default_int_handler:
                self._handlers.append((number, handler, self._instead_of(handler)))
                signal.signal(number, self._handlers[-1][2])

    def end(self) -> None:
        """Put everything back; handlers are what they were, but for those that were replaced meanwhile."""
        try:
            with self.settling():
                put_all_back(reversed(self.back))
                self.back, self.looks = [], []
        finally:
            for number, handler, instead in self._handlers:
                if signal.getsignal(number) is instead:
                    signal.signal(number, handler)
            self._handle_waiting()

    def _instead_of(self, handler: Handler) -> Handler:
        @functools.wraps(handler)
        def handled(number: int, frame: Any) -> None:
            self._waiting.append((handler, number, frame))
            if not self._busy:
                self._handle_waiting()

        return handled

    def _handle_waiting(self) -> None:
        """Those that come while state is looked at again wait for the next time, so that no timer holds up the trial."""
        if not self._waiting:
            return
        self._busy = True
        try:
            now = [look() for look in self.looks]
            put_all_back(reversed(self.back))
            token = _running.set(())
            try:
                while self._waiting:
                    handler, number, frame = self._waiting.pop(0)
                    handler(number, frame)
            finally:
                _running.reset(token)
                self.back = [look() for look in self.looks]
            put_all_back(reversed(now))
        finally:
            self._busy = False


@contextmanager
def trial() -> Iterator[None]:
    """What is run on copies inside leaves what it counts outside of itself as it was, also after an exception.

    A loss may read what the forward has left there, and a backward may count as well: nothing is put back before the end.
    Of trials within each other each begins with what its own beginning found. A handler of a signal that comes meanwhile finds the state
    of the run, and what it changes there stays.

    Raises:
        Exception: Something cannot be put back, see `put_all_back`; after an exception inside, that one.
    """
    own, outer = _Trial(), _running.get()
    token = _running.set((*outer, own))
    try:
        if not outer:
            own.watch_signals()
        yield
    except BaseException:
        _running.reset(token)
        try:
            own.end()
        except Exception as error:  # The caller is told what went wrong first.
            let_through(error)
        raise
    _running.reset(token)
    own.end()


def put_all_back(back: Iterable[PutBack]) -> None:
    """Call each of ``back``, also after one that fails: what one object of the user's refuses is no reason to leave the others.

    Raises:
        Exception: The first failure, when all are called: what a trial has changed and could not put back must be told.
    """
    failures: list[Exception] = []
    for put_back in back:
        try:
            put_back()
        except Exception as error:
            failures.append(error)
    for failure in failures:
        let_through(failure)
    if failures:
        raise failures[0]


def running() -> bool:
    """Whether a trial runs here; a signal's handler is none of it."""
    return bool(_running.get())


def a_trial() -> AbstractContextManager[None]:
    """The trial that runs, or one of its own where none does."""
    return nullcontext() if _running.get() else trial()


def put_back_after(called: Any, look: Callable[[], PutBack]) -> None:
    """``called`` is about to be called, which ``look`` finds the state of: every trial that runs puts it back in the end."""
    lacking = [one for one in _running.get() if id(called) not in one.known]
    if not lacking:
        return
    with lacking[0].settling():
        back = look()
        for one in lacking:
            one.add(called, look, back)
