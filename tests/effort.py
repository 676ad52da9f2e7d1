"""How much work a call takes, counted and not timed: the same on a slow machine and on a busy one."""

from __future__ import annotations

import sys
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
