"""Settings of an optimizer beyond which no training goes well, whatever it trains."""

from __future__ import annotations

from typing import NamedTuple

MOST_MOMENTUM = 1.0
"""Momentum from which on no gradient leaves the update again."""

LARGEST_DECAY = 0.02
"""Share of every weight that a step takes away from which on weights halve in fewer than 35 steps."""

SMALL_ENOUGH = 0.1
"""Size of the weights that a decoupled decay leaves to an optimizer whose steps are about its rate, from which down too little is left: most
initialisations of up to a hundred inputs have as much."""


class Setting(NamedTuple):
    """A setting that is beyond its limit."""

    signal: str
    """Name of the signal that it is told as."""

    value: float
    group: int
    """Place of its parameter group."""
