"""The rates of the steps on a copy: held, as the first steps of a run had them, or as the step of the user's own class sets them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from gnnstab.errors import let_through
from gnnstab.randomness import given_back

Rates = Sequence[Sequence[float]]
"""Per step the rate of every group; what comes after the last step has its rates."""


def hold_rates(optimizer: torch.optim.Optimizer) -> None:
    """Let every group keep its rate in all steps: a schedule in the ``step`` of the user's own class is left out, with that ``step``."""
    follow_rates(optimizer, [[group["lr"] for group in optimizer.param_groups]])


def follow_rates(optimizer: torch.optim.Optimizer, rates: Rates) -> None:
    """Give the groups these rates, step by step, whatever the user's own class sets, as of `hold_rates`."""
    step = _step_below(optimizer) if _sets_rates(optimizer) else optimizer.step
    _set_rates(optimizer, rates[0])
    taken = 0

    def followed(*args: Any, **kwargs: Any) -> Any:
        nonlocal taken
        _set_rates(optimizer, rates[min(taken, len(rates) - 1)])
        taken += 1
        return step(*args, **kwargs)

    optimizer.step = followed  # type: ignore[method-assign]


def of_torch(optimizer: torch.optim.Optimizer) -> bool:
    """True of a class of torch's own, whose step leaves the rates to schedules."""
    return type(optimizer).__module__.startswith("torch.")


def follows(optimizer: torch.optim.Optimizer) -> bool:
    """True of one that was given its rates by one of the above."""
    return "step" in vars(optimizer)


def own_rates(optimizer: torch.optim.Optimizer, steps: int) -> Rates:
    """The rates that the step of the user's own class sets in its next steps; none where it sets none. It is a copy, which these steps are taken with."""
    if not _sets_rates(optimizer):  # One step, which counts.
        return ()
    rates = [_rates(optimizer)]
    try:
        with given_back():
            for _ in range(steps - 1):
                optimizer.step()
                rates.append(_rates(optimizer))
    except Exception as error:
        let_through(error)
        return ()
    return rates


def times(rates: Rates, factors: Sequence[float]) -> Rates:
    """``rates`` times the factor of each group; one that has come since has those of the first."""
    return [[by * (row[place] if place < len(row) else row[0]) for place, by in enumerate(factors)] for row in rates]


def rates_of_run(optimizer: torch.optim.Optimizer, steps: ArrayLike, rates: ArrayLike, first: int, many: int) -> Rates:
    """Those of the first steps of a run, where its schedule comes to its largest within the ``first`` of them; none of a constant rate.

    Of a schedule that takes longer, nothing is seen in so few steps: its largest rate counts, which the groups of ``optimizer`` have, at the beginning of whose run it is.

    Args:
        optimizer: A copy.
        steps: Steps (n,) whose rate is known, in order.
        rates: That of the first group in each of them (n,).
        first: Steps within which the rate has to come to its largest.
        many: Steps of which rates are returned.
    """
    if any("lr" not in group for group in optimizer.param_groups):  # Its rate has another name.
        return ()
    at, known = np.asarray(steps, dtype=np.float64), np.asarray(rates, dtype=np.float64)
    largest = _rates(optimizer)
    sets = _sets_rates(optimizer)
    _set_rates(optimizer, largest)
    if sets:  # The first is what the class was made with, unless it sets the rate behind the update.
        at, known = at[1:] - 1, known[1:]
    if len(known) > 1 and known.min() != known.max() > 0 and known[at < first].max(initial=0.0) == known.max():
        shares = np.interp(np.arange(many), at, known / known.max())
        return [[float(share) * rate for rate in largest] for share in shares]
    return [largest] if sets else ()


def _rates(optimizer: torch.optim.Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def _set_rates(optimizer: torch.optim.Optimizer, rates: Sequence[float | Tensor]) -> None:
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def _sets_rates(optimizer: torch.optim.Optimizer) -> bool:
    """True where a step without any gradient, which moves nothing, gives a rate to a group of a class that is not torch's own."""
    if of_torch(optimizer) or any("lr" not in group for group in optimizer.param_groups):
        return False
    asked = [object() for _ in optimizer.param_groups]
    optimizer.zero_grad(set_to_none=True)
    _set_rates(optimizer, asked)  # type: ignore[arg-type]
    try:
        with given_back():
            optimizer.step()
    except Exception as error:  # It asks for a closure, or computes with its rate.
        let_through(error)
        return False
    return any(group["lr"] is not one for group, one in zip(optimizer.param_groups, asked, strict=True))


def _step_below(optimizer: torch.optim.Optimizer) -> Callable[..., Any]:
    """The step of the class of torch's that this one extends; its own where there is none."""
    known = (base for base in type(optimizer).__mro__ if base.__module__.startswith("torch.optim."))
    kind = next((base for base in known if base is not torch.optim.Optimizer and "step" in vars(base)), None)
    return optimizer.step if kind is None else partial(vars(kind)["step"], optimizer)
