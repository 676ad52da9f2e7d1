"""Counts what a file lists, also what it lists again: one object of a pickle may stand in a million places."""

from __future__ import annotations

from gnnstab.errors import LoadError

MOST_LISTED = 1_000_000
"""Parameters of optimizers, their settings and state, submodules and their tensors, before a file is refused."""


class Tally:
    """Counts for one file."""

    def __init__(self, shown: str) -> None:
        self._shown, self._left = shown, MOST_LISTED

    def add(self, count: int) -> None:
        """Account for so many; raises `LoadError` beyond `MOST_LISTED`."""
        self._left -= count
        if self._left < 0:
            raise LoadError(
                f"{self._shown}: lists more than {MOST_LISTED} parameters and submodules, repeated ones included; save the "
                "state_dict alone"
            )
