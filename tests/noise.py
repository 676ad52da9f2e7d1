"""A module of a user's that keeps generators, in the ways in which programs do."""

from __future__ import annotations

import functools
import random
from types import SimpleNamespace

import numpy as np


class Slots:
    """An object without a ``__dict__``."""

    __slots__ = ("rng",)
    rng: np.random.Generator


RNG = np.random.default_rng(0)
PYTHON = random.Random(0)
STATE = SimpleNamespace(rng=np.random.RandomState(0))
SLOTS = Slots()


@functools.lru_cache(maxsize=4)
def made() -> np.random.Generator:
    """A generator that the first call makes."""
    return np.random.default_rng(0)


def reset() -> None:
    """All of them at their beginning."""
    global RNG, PYTHON
    RNG, PYTHON = np.random.default_rng(0), random.Random(0)
    STATE.rng, SLOTS.rng = np.random.RandomState(0), np.random.default_rng(0)
    made.cache_clear()


def drawn() -> list[float]:
    """The next number of each."""
    generators = (RNG, PYTHON, STATE.rng, SLOTS.rng, made())
    return [float(g.random_sample() if isinstance(g, np.random.RandomState) else g.random()) for g in generators]
