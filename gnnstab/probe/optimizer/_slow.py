"""Whether a rate is far too small: the same steps at ten, a hundred, … times it, on a copy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from gnnstab.probe.optimizer._zeros import of_zeros
from gnnstab.records import Signal
from gnnstab.records.vocabulary import OPTIMIZER_SLOW

if TYPE_CHECKING:
    from gnnstab.probe.optimizer.optimizer_steps import Bench

STEPS = 20
"""Most steps of each trial: six at a good rate may take less than a tenth off a loss of classes."""

FACTORS = tuple(10.0**power for power in range(1, 7))

FALLS = 0.1
"""Fall of ln(loss) that counts as learning."""


HUNDRED = 100.0
"""Factor at which the steps are taken in full, beside those at the rate as it is."""


def slow_signals(bench: Bench, largest: float = 0.0) -> Iterator[Signal]:
    """The smallest factor on the rate with which a few steps are calm and lower the loss by a tenth; nothing where none does.

    Of a rate that has fallen from ``largest``, that one is tried as well, and a tenth and a hundredth of it. ``at_hundred`` is the
    fall at `HUNDRED` times the rate, 0 where that is not calm, and ``over_zeros`` the first loss over that of outputs of zeros.
    """
    own = bench.trial(STEPS, until=_learned)
    now = max(float(group["lr"]) for group in bench.optimizer.param_groups)
    before = [share * largest / now for share in (0.01, 0.1, 1.0)] if now > 0 else []
    for factor in sorted({*FACTORS, *(f for f in before if f > FACTORS[-1])}) if own.fall < FALLS else ():
        trial = bench.trial(STEPS, factor=factor, until=_learned)
        if not trial.calm:
            return
        if trial.fall >= FALLS:
            whole = bench.trial(STEPS, factor=HUNDRED)
            detail = {
                "lr": now,
                "steps": len(trial.losses) - 1,
                "fell": [own.fall, trial.fall],
                "at_hundred": whole.fall if whole.calm else 0.0,
                "over_zeros": own.losses[0] / of_zeros(bench),
                "optimizer": type(bench.optimizer).__name__,
            }
            yield Signal(OPTIMIZER_SLOW, factor, source="steps", detail=detail)
            return


def _learned(losses: Sequence[float]) -> bool:
    return losses[-1] <= math.exp(-FALLS) * losses[0]
