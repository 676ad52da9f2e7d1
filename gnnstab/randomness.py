"""The random state of a process: torch's, CUDA's, NumPy's and that of `random`."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

import numpy as np

from gnnstab.sharding import WHY, waits_for_others

Function = TypeVar("Function", bound=Callable[..., Any])

T = TypeVar("T")


@contextmanager
def same_random_state() -> Iterator[None]:
    """Give every generator back as it was, also after an exception.

    Whoever runs a user's model draws from generators that the user's training goes on with: dropout from torch's, a
    sampler from NumPy's, a layer that drops whole paths from `random`.
    """
    # Of what nobody has loaded nobody has drawn: asking would load it.
    numbers = np.random.get_state() if "numpy.random" in sys.modules else None
    python, generators = random.getstate(), _torch_states()
    try:
        yield
    finally:
        if numbers is not None:
            np.random.set_state(numbers)
        random.setstate(python)
        for generator, state in generators:
            generator.set_state(state)


def drawn_state() -> tuple[Any, ...]:
    """What tells whether a number was drawn in between: equal before and after where none was."""
    numbers = np.random.get_state(legacy=False)["state"] if "numpy.random" in sys.modules else None
    drawn = () if numbers is None else (numbers["key"].tobytes(), numbers["pos"])
    return random.getstate(), drawn, tuple(state.numpy().tobytes() for _, state in _torch_states())


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Every generator set to ``seed`` inside, and given back as it was: two runs then differ in nothing drawn."""
    import torch

    with same_random_state():
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        yield


def keeps_random_state(function: Function) -> Function:
    """A function that runs within `same_random_state`."""

    @wraps(function)
    def kept(*args: Any, **kwargs: Any) -> Any:
        with same_random_state():
            return function(*args, **kwargs)

    return kept  # type: ignore[return-value]


def deep_copy(value: T, memo: dict[int, Any] | None = None) -> T:
    """`copy.deepcopy`, with names that are drawn from `random` during the copy unlike any that the caller will draw.

    torch_geometric's Sequential draws a name for its generated forward, also when it is copied, and two that draw the same
    name share one forward. Giving the state of `random` back after a plain copy would make the caller's next one such a pair.

    Raises:
        RuntimeError: The value is a model of which other processes hold a part: running a copy would wait for them, while they
            go on with the training.
    """
    if waits_for_others(value):
        raise RuntimeError(WHY)
    state = random.getstate()
    random.seed()
    try:
        return copy.deepcopy(value, memo)
    finally:
        random.setstate(state)


def _torch_states() -> list[tuple[Any, Any]]:
    """(generator, its state) of the CPU and of every device in use; asking must neither import torch nor start CUDA."""
    torch = sys.modules.get("torch")
    if torch is None:
        return []
    generators = [torch.default_generator]
    if torch.cuda.is_initialized():
        generators += torch.cuda.default_generators
    return [(generator, generator.get_state()) for generator in generators]
