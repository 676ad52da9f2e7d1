"""A trial on copies: what a forward, its loss and its backward change outside of them is put back when all of it is over."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from gnnstab.errors import let_through
from gnnstab.surroundings import surroundings

PutBack = Callable[[], None]

T = TypeVar("T")

_running: ContextVar[tuple[_Trial, ...]] = ContextVar("_running", default=())
"""The outermost first."""


class _Trial:
    def __init__(self) -> None:
        self.known: dict[int, tuple[Any, Any]] = {}
        """What is about to run, or ran, and what it reaches; held, since an id is used again once its object is gone."""

        self.back: list[PutBack] = [surroundings()]


@contextmanager
def trial() -> Iterator[None]:
    """What is run on copies inside leaves what it counts outside of itself as it was, also after an exception.

    A loss may read what the forward has left there, and a backward may count as well: nothing is put back before the end.
    Of trials within each other each begins with what its own beginning found.

    Raises:
        Exception: Something cannot be put back, see `put_all_back`; after an exception inside, that one.
    """
    own = _Trial()
    token = _running.set((*_running.get(), own))
    try:
        yield
    except BaseException:
        _running.reset(token)
        try:
            put_all_back(reversed(own.back))
        except Exception as error:  # The caller is told what went wrong first.
            let_through(error)
        raise
    _running.reset(token)
    put_all_back(reversed(own.back))


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


def found_before(called: Any) -> Any:
    """What `put_back_after` found of ``called`` in a trial that runs; None where it was not called in one."""
    return next((one.known[id(called)][1] for one in _running.get() if id(called) in one.known), None)


def put_back_after(called: Any, find: Callable[[], T], look: Callable[[T], PutBack]) -> None:
    """``called`` is about to be called; ``look`` takes the state of what it reaches, which ``find`` finds once for trials within each other.

    Every trial that runs puts it back in the end.
    """
    running = _running.get()
    lacking = [one for one in running if id(called) not in one.known]
    if not lacking:
        return
    known = next((one.known[id(called)] for one in running if id(called) in one.known), None)
    reached = find() if known is None else known[1]
    back = look(reached)
    for one in lacking:
        one.known[id(called)] = called, reached
        one.back.append(back)
