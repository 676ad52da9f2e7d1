"""How much work a call takes, counted and not timed: the same on a slow machine and on a busy one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


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
