"""What the first of several copies of a model has shown, so that the next ones are not asked about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Known:
    """What the first copy of a model has shown, and of its optimizer; the next ones do the same as long as the two are as they were."""

    modes: set[tuple[bool, bool]] = field(default_factory=set)
    """(training, with gradients) of every mode in which a forward was looked at."""

    copied: bool = False
    """A copy of the model was made that shares nothing with the run."""

    moved: bool = False
    """So was one of the optimizer."""

    around: list[Any] = field(default_factory=list)
    """What the copies of the model have in common with the run, see `gnnstab.probe.replaying.reach.code_around`; empty where it is not known."""

    beside: list[Any] = field(default_factory=list)
    """The same of the copies of the optimizer."""
