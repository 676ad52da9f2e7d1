"""Whether a rate, or a limit of the gradient, is far too small: the same steps at ten, a hundred, … times it, at the optimizer's default, or without the limit, on a copy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from gnnstab.probe.optimizer._settings import default_rate, usual_rate
from gnnstab.probe.optimizer._zeros import of_zeros
from gnnstab.probe.optimizer.schedules import hold_rates
from gnnstab.records import Signal
from gnnstab.records.vocabulary import OPTIMIZER_SLOW

if TYPE_CHECKING:
    from gnnstab.probe.optimizer.optimizer_steps import Bench, Trial

STEPS = 20
"""Most steps of each trial: six at a good rate may take less than a tenth off a loss of classes."""

FACTORS = tuple(10.0**power for power in range(1, 7))

_IN_STORE = ("initial_lr", "max_lr")
"""Where schedules keep the rate that they warm up to."""

FALLS = 0.1
"""Fall of ln(loss) that counts as learning."""

TIGHT = 10.0
"""Norm of the first gradient over the largest of a run from which on the run is taken to have limited it to next to nothing."""

HUNDRED = 100.0
"""Factor at which the steps are taken in full, beside those at the rate as it is."""


def slow_signals(bench: Bench, largest: float = 0.0) -> Iterator[Signal]:
    """The smallest factor on the rate with which a few steps are calm and lower the loss by a tenth; nothing where none does.

    Of a rate that has fallen from ``largest``, that one is tried as well, and a tenth and a hundredth of it. ``at_hundred`` is the
    fall at `HUNDRED` times the rate, 0 where that is not calm, ``over_zeros`` the first loss over that of outputs of zeros, and ``furthest`` the
    largest fall in `STEPS` calm steps at those of ``largest``. All steps are taken at a constant rate.
    """
    own = bench.trial(STEPS, until=_learned, setting=hold_rates)
    ended = all(group["lr"] == 0 for group in bench.optimizer.param_groups) and largest > 0
    bench = _barely(bench, largest) if ended else bench
    now = max(float(group["lr"]) for group in bench.optimizer.param_groups)
    before = [share * largest / now for share in (0.01, 0.1, 1.0)] if now > 0 else []
    for factor in sorted({*FACTORS, *(f for f in before if f > FACTORS[-1])}) if own.fall < FALLS else ():
        trial = bench.trial(STEPS, factor=factor, until=_learned, setting=hold_rates)
        if not trial.calm:
            break
        if trial.fall >= FALLS:
            whole = bench.trial(STEPS, factor=HUNDRED, setting=hold_rates)
            high = [bench.trial(STEPS, factor=one, setting=hold_rates) for one in before if one >= HUNDRED]
            detail = {
                "lr": 0.0 if ended else now,
                "rate": factor * now,
                "steps": len(trial.losses) - 1,
                "fell": [own.fall, trial.fall],
                "at_hundred": whole.fall if whole.calm else 0.0,
                "furthest": max((one.fall for one in high if one.calm), default=0.0),
                "over_zeros": own.losses[0] / of_zeros(bench),
                "optimizer": type(bench.optimizer).__name__,
            }
            yield Signal(OPTIMIZER_SLOW, factor, source="steps", detail=detail)
            return
    if own.fall < FALLS:
        yield from _of_groups(bench, own, largest)


def _of_groups(bench: Bench, own: Trial, largest: float) -> Iterator[Signal]:
    """The same where some groups alone have come down to less than 1/`HUNDRED` of ``largest``: these are raised, and the others stay."""
    rates = [float(group["lr"]) for group in bench.optimizer.param_groups]
    low = [place for place, rate in enumerate(rates) if rate * HUNDRED < largest]
    if not low or len(low) == len(rates):
        return
    highest = max(rates[place] for place in low)
    for rate in (0.01 * largest, 0.1 * largest, largest):

        def raised(optimizer: torch.optim.Optimizer, rate: float = rate) -> None:
            for place in low:
                optimizer.param_groups[place]["lr"] = rate
            hold_rates(optimizer)

        trial = bench.trial(STEPS, setting=raised)
        if trial.calm and trial.fall >= FALLS:
            detail = {
                "lr": highest,
                "rate": rate,
                "steps": len(trial.losses) - 1,
                "fell": [own.fall, trial.fall],
                "over_zeros": own.losses[0] / of_zeros(bench),
                "optimizer": type(bench.optimizer).__name__,
                "groups": [len(low), len(rates)],
            }
            yield Signal(OPTIMIZER_SLOW, rate / max(highest, rate / FACTORS[-1]), source="steps", detail=detail)
            return


def unclipped(bench: Bench, clip: float) -> Iterator[Signal]:
    """What a few steps get to with the gradient's norm limited to ``clip`` and without a limit; nothing where its norm is less than `TIGHT` times that, or they are not calm."""
    norm = bench.gradient_norm()
    if not 0 < TIGHT * clip <= norm:
        return
    own, free = (one.trial(STEPS, setting=hold_rates) for one in (replace(bench, clip=clip), bench))
    if free.calm:
        detail = {"clip": clip, "norm": norm, **_beside(bench, own, free)}
        yield Signal(OPTIMIZER_SLOW, norm / clip, source="steps", detail=detail)


def far_below_usual(bench: Bench) -> Iterator[Signal]:
    """What the default rate of the optimizer's class makes of a few steps, where the one in use, and the highest that its schedule has in store, is a hundredth of it or less; nothing where those are not calm."""
    told = [float(group.get(name, 0.0)) for group in bench.optimizer.param_groups for name in ("lr", *_IN_STORE)]
    now, usual = max(told), default_rate(bench.optimizer)
    if not 0 < now <= usual / HUNDRED or bench.schedule:  # What a class sets in its own step has more in store.
        return
    own, better = (bench.trial(STEPS, factor=f, setting=hold_rates) for f in (1.0, usual / now))
    if better.calm:
        detail = {"lr": now, "usual": usual, "moved": own.moved, **_beside(bench, own, better)}
        yield Signal(OPTIMIZER_SLOW, usual / now, source="steps", detail=detail)


def far_above_usual(bench: Bench) -> bool:
    """True where steps come to a rate of `FACTORS[0]` times the default of its class or more, and updates have the size of the rate whatever the gradient: SGD's has no usual one."""
    return bench.largest_rate >= FACTORS[0] * usual_rate(bench.optimizer) > 0


def _beside(bench: Bench, own: Trial, better: Trial) -> dict[str, Any]:
    """What a few steps as they are, and others beside them, have come to."""
    return {
        "steps": STEPS,
        "fell": [own.fall, better.fall],
        "over_zeros": own.losses[0] / of_zeros(bench),
        "optimizer": type(bench.optimizer).__name__,
    }


def _barely(bench: Bench, largest: float) -> Bench:
    """The bench of an optimizer whose rates have come to 0, with next to nothing of those that they began with, which can be multiplied."""
    model, optimizer = bench.twins()
    for group in optimizer.param_groups:
        group["lr"] = float(group.get("initial_lr", largest)) / FACTORS[-1]
    return replace(bench, model=model, optimizer=optimizer)


def _learned(losses: Sequence[float]) -> bool:
    return losses[-1] <= math.exp(-FALLS) * losses[0]
