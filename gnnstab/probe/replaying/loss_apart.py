"""A loss of the user's, called on copies of whatever it changes: criteria with parameters or buffers, heads, generators."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gnnstab.left_out import left_out
from gnnstab.probe.replaying._own_state import OwnState
from gnnstab.probe.replaying.outside import Outside
from gnnstab.probe.replaying.reach import refuse_draws_of_process, stateful
from gnnstab.probe.replaying.replica import tensors_in
from gnnstab.randomness import deep_copy, given_back
from gnnstab.trials import found_before, put_back_after


def apart(loss: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """``loss`` so that neither its call nor the backward of what it returns changes anything that it holds.

    The call raises `UsageError` where that cannot be had.
    """

    seen: list[bool] = []

    @functools.wraps(loss, updated=())
    def called(output: Any, batch: Any) -> Any:
        with given_back(), _on_copies(loss) as held:
            refuse_draws_of_process(loss)
            if seen:
                return loss(output, batch)
            with OwnState([*held, *(tensor for _, tensor in tensors_in([output, batch]))]):
                value = loss(output, batch)
        if torch.is_grad_enabled():
            seen.append(True)  # A loss does the same each time.
        return value

    return called


@contextmanager
def _on_copies(loss: Any) -> Iterator[list[Any]]:
    """Everything with attributes that the loss reaches has those of a copy inside, and generators go on from where they were.

    Gives the tensors and generators that are the copies' own.
    """
    reached = found_before(loss)
    if (
        reached is None or reached.owners or reached.generators
    ):  # Else there is nothing to copy for the next call either.
        reached = stateful(loss)
    if any(_watched(held) for held in reached.owners):
        raise left_out(f"the loss reaches the model that is trained; {_ADVICE}")
    if reached.other:
        raise left_out(f"the loss reaches {reached.other}, which a replay would change; {_ADVICE}")
    memo: dict[int, Any] = {}
    try:
        twins = deep_copy(reached.owners, memo) if reached.owners else []
    except Exception as error:
        raise left_out(f"what the loss holds cannot be copied: {type(error).__name__}: {error}") from error
    if any(twin is own for twin, own in zip(twins, reached.owners, strict=True)):
        raise left_out(f"the loss holds a module whose copy is itself; {_ADVICE}")
    kept = [(own, vars(own)) for own in reached.owners]
    states = [(generator, _state(generator)) for generator in reached.generators]
    put_back_after(loss, lambda: reached, lambda found: Outside(found.code).put_back)
    try:
        for (own, _), twin in zip(kept, twins, strict=True):
            object.__setattr__(own, "__dict__", vars(twin))
        copies = [value for value in memo.values() if isinstance(value, (Tensor, torch.Generator))]
        yield [*copies, *(generator for generator in reached.generators if isinstance(generator, torch.Generator))]
    finally:
        for own, attributes in kept:
            object.__setattr__(own, "__dict__", attributes)
        for generator, state in states:
            _set_state(generator, state)


_ADVICE = "give a loss(output, batch) of the output and the labels alone"


def _watched(held: Any) -> bool:
    """Whether gnnstab watches this module: calling it would be recorded as a forward of the run."""
    tables = [v for n, v in vars(held).items() if n.endswith("_hooks") and isinstance(v, dict)]
    return isinstance(held, nn.Module) and any(
        type(hook).__module__.startswith("gnnstab.probe.attaching") for table in tables for hook in table.values()
    )


def _state(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, np.random.RandomState):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.state if isinstance(generator, np.random.BitGenerator) else generator.getstate()


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, (torch.Generator, np.random.RandomState)):
        generator.set_state(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, np.random.BitGenerator):
        generator.state = state
    else:
        generator.setstate(state)
