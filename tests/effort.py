"""How much work a call takes: counted where it can be, else timed by the pace of the processor that it runs on."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any
from unittest.mock import patch


class TooMuchWork(BaseException):
    """More calls than allowed; no `Exception`, so that no handler under test takes it for its own."""


@contextmanager
def at_most(calls: int) -> Iterator[None]:
    """End the block, and fail, at the call of a function (Python or C) that is one too many."""
    made = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal made
        if event in ("call", "c_call"):
            made += 1
            if made > calls:
                sys.setprofile(None)
                raise TooMuchWork(f"more than {calls} calls")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(before)


PACE = 0.014
"""Seconds that `_stretch` takes on the machine on which the limits of `within` were set."""


def _stretch() -> float:
    started = time.process_time()
    kept = {}
    for number in range(100_000):
        kept[number % 997] = str(number)
        len(kept)
    return time.process_time() - started


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fail when the block takes more than these seconds of processor time, of the machine on which the limit was set.

    For work inside C that no call counts. The limit grows where the processor is slower than that machine, before the
    block or after it: what is caught is work that grows without bound.
    """
    before = _stretch()
    started = time.process_time()
    yield
    spent = time.process_time() - started
    allowed = seconds * max(1.0, max(before, _stretch()) / PACE)
    assert spent < allowed, f"took {spent:.2f} s of processor time where {allowed:.2f} s are allowed"


@contextmanager
def work(model: Any) -> Iterator[Counter[str]]:
    """Forwards of a model and of its copies, backwards, and steps of an Adam within the block."""
    import torch

    made: Counter[str] = Counter()
    places = {
        "forwards": (type(model), "forward"),
        "backwards": (torch.autograd, "backward"),
        "steps": (torch.optim.Adam, "step"),
    }
    with ExitStack() as patches:
        for kind, (home, name) in places.items():
            patches.enter_context(patch.object(home, name, _counting(made, kind, getattr(home, name))))
        yield made


def _counting(made: Counter[str], kind: str, own: Callable[..., Any]) -> Callable[..., Any]:
    def count(*args: Any, **more: Any) -> Any:
        made[kind] += 1
        return own(*args, **more)

    count.__module__ = "gnnstab.tests"  # What code of the user's counts is put back after a trial.
    return count
