"""Counts what a file lists, also what it lists again: one object of a pickle may stand in a million places."""

from __future__ import annotations

from gnnstab.errors import LoadError

MOST_CHARACTERS = 20_000_000
"""Of all names together, each with its whole path; more than stand in any pickle, unless paths repeat."""

MOST_LISTED = 1_000_000
"""Parameters of optimizers, their settings and state, submodules and their tensors, before a file is refused."""


class Tally:
    """Counts for one file."""

    def __init__(self, shown: str) -> None:
        self._shown, self._left, self._characters = shown, MOST_LISTED, MOST_CHARACTERS

    def add(self, count: int) -> None:
        """Account for so many; raises `LoadError` beyond `MOST_LISTED`."""
        self._left -= count
        if self._left < 0:
            raise LoadError(
                f"{self._shown}: lists more than {MOST_LISTED} parameters and submodules, repeated ones included; save the "
                "state_dict alone"
            )

    def spell(self, characters: int) -> None:
        """Account for names of so many characters; raises `LoadError` beyond `MOST_CHARACTERS`."""
        self._characters -= characters
        if self._characters < 0:
            raise LoadError(
                f"{self._shown}: its names have more than {MOST_CHARACTERS} characters, paths included; save the state_dict alone"
            )
