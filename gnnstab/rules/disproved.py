"""Growth that was said to go on, and that later steps have shown to end."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gnnstab.records import Finding, Series, Signals
from gnnstab.records.rises import LASTING
from gnnstab.records.vocabulary import LOSS, LOSS_GROWTH, OUTPUT_GROWTH, OUTPUT_RMS

LONG = 50
"""Fewest steps that can disprove a finding; an output that doubles more slowly is followed until it would have doubled."""

SMOOTH = 9
"""Values whose median counts: batches differ."""

AROUND = 48
"""Steps before a finding, in which what it tells of has grown: the longest window of the live rules."""

FLAT = 1.1
"""× the end within which a size has levelled off."""

BEYOND = 4.0
"""× what it was at the finding up to which a plateau is a size that was learned, and not one that has run into an end."""

Values = NDArray[np.float64]


def disproved(finding: Finding, signals: Signals) -> Finding:
    """A warning of steady growth as the steps after it judge it: information where the loss has come down again, or the output has levelled off.

    A loss must have lost half of its rise for good, `LONG` steps ago or more, or stand no quarter above its lowest when the growth would have led there. An output must not have grown for as long as it would have
    doubled in, while the loss lies no higher than at its start and at the finding: where weights are lost, outputs stand still too.
    """
    judged = finding.signal in (LOSS_GROWTH, OUTPUT_GROWTH) and finding.severity == "warning"
    if signals.kind != "trace" or not judged or finding.step is None or not finding.value > 0:
        return finding
    loss = _smooth(signals.series, LOSS, None)
    if loss is None:
        return finding
    least = LONG
    if finding.signal == LOSS_GROWTH:
        since, said = _came_down(*loss, finding.step), "The loss has come down again, since step {}."
        if since is None:
            since, said = (
                _stood(*loss, finding.step, finding.value),
                "The loss has grown no further than a quarter, from step {} on.",
            )
    else:
        least = max(LONG, math.ceil(math.log(2) / math.log1p(finding.value)))
        own = _smooth(signals.series, OUTPUT_RMS, finding.layer)
        since = None if own is None or not _no_higher(*loss, finding.step) else _levelled(*own, finding.step)
        said = "It has levelled off, from step {} on."
    if since is None or loss[0][-1] - since < least:
        return finding
    return replace(finding, severity="info", message=f"{finding.message} {said.format(since)}")


def _smooth(series: Iterable[Series], name: str, layer: str | None) -> tuple[Values, Values] | None:
    """Steps (n,) and the sizes of running medians (n,); None where a value is not finite, or they are few."""
    own = next((s for s in series if s.name == name and s.layer == layer and s.head is None), None)
    if own is None or len(own.values) < 2 * SMOOTH or not np.isfinite(own.values).all():
        return None
    medians = np.median(np.lib.stride_tricks.sliding_window_view(own.values.astype(np.float64), SMOOTH), axis=1)
    return own.steps[SMOOTH - 1 :].astype(np.float64), np.abs(medians)


def _came_down(steps: Values, sizes: Values, at: int) -> int | None:
    """The step from which on half of the rise to what was reached at a step has gone for good; None where it has not."""
    risen = sizes[(steps > at - AROUND) & (steps <= at)]
    later = steps > at
    if not len(risen) or not later.any() or not risen[-1] > risen.min():
        return None
    return _from_where(steps[later], sizes[later] <= (risen.min() + risen[-1]) / 2)


def _stood(steps: Values, sizes: Values, at: int, pace: float) -> int | None:
    """The step from which on sizes lie no quarter above the lowest up to a step, where growth at its ``pace`` would have led there since; as where two players hold one another."""
    before, later = sizes[steps <= at], steps > at
    risen = len(before) and before[-1] > before[-AROUND:].min()
    if not risen or not later.any() or steps[-1] - at < math.log(LASTING) / math.log1p(pace):
        return None
    return _from_where(steps[later], sizes[later] <= LASTING * before.min())


def _levelled(steps: Values, sizes: Values, at: int) -> int | None:
    """The step from which on sizes lie around that of the end; None where that is far beyond what it was at the finding."""
    before, later = sizes[steps <= at], steps > at
    if not len(before) or not later.any() or not sizes[-1] <= BEYOND * before[-1]:
        return None
    end = float(np.median(sizes[later][-SMOOTH:]))
    return _from_where(steps[later], sizes[later] <= FLAT * end)


def _from_where(steps: Values, holds: NDArray[np.bool_]) -> int | None:
    """The first step from which on something holds up to the end."""
    if not holds[-1]:
        return None
    broken = np.flatnonzero(~holds)
    return int(steps[broken[-1] + 1 if len(broken) else 0])


def _no_higher(steps: Values, losses: Values, at: int) -> bool:
    """True where the loss has ended no higher than it began, and than it was at the step."""
    before = losses[steps <= at]
    return bool(len(before) and losses[-1] <= min(before[0], before[-1]))
