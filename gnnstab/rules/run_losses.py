"""What the losses of a run say: whether it has learned, and what it has come to."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from gnnstab.records import Series, Signals
from gnnstab.records.vocabulary import LOSS

LOSSES = 5
"""Losses whose median stands for one point of a run: batches differ."""


STANDING = 40
"""Steps that a run may need before its loss begins to fall."""

HARDLY = 0.9
"""× the first losses above which the last ones lie where a run has learned next to nothing."""


def loss_at_its_best(series: Iterable[Series], since: int = 0) -> bool:
    """True for a run whose loss, never below 0, fell to half of its start or less and ended no higher than 1.5 times its best, or above it by 1 % of its start.

    Medians of `LOSSES` losses count, and the very first, before any update: a loss that jumps up at once and comes back has learnt nothing; one that is not finite after step ``since`` makes it false.
    """
    loss = _loss_in(series)
    if loss is None or len(loss.values) < 2 * LOSSES or not np.isfinite(loss.values[loss.steps >= since]).all():
        return False
    finite = loss.values[np.isfinite(loss.values)]
    medians = np.median(np.lib.stride_tricks.sliding_window_view(finite, LOSSES), axis=1)
    return bool(
        medians[0] > 0 <= medians.min()
        and medians[-1] <= 0.5 * min(medians[0], finite[0])
        and medians[-1] <= max(1.5 * medians.min(), medians.min() + 0.01 * finite[0])
    )


def came_down_after(series: Iterable[Series], step: int) -> bool:
    """True for a run whose loss, never below 0, fell by a tenth or more after ``step``, or to 1 % of its first, and ended as `loss_at_its_best` wants the end.

    False where fewer than `2 * LOSSES` losses follow, or fewer than `LOSSES` came before: then nobody knows.
    """
    loss = _loss_in(series)
    if loss is None or not np.isfinite(loss.values).all() or not (loss.values >= 0).all():
        return False
    before, after = loss.values[loss.steps <= step], loss.values[loss.steps > step]
    if len(before) < LOSSES or len(after) < 2 * LOSSES:
        return False
    first, last, had = loss.values[0], float(np.median(after[-LOSSES:])), float(np.median(before[-LOSSES:]))
    best = np.median(np.lib.stride_tricks.sliding_window_view(loss.values, LOSSES), axis=1).min()
    return bool(last <= max(HARDLY * had, 0.01 * first) and last <= max(1.5 * best, best + 0.01 * first))


def trained_well(signals: Signals) -> bool:
    """True for a recorded run whose loss has ended at its best."""
    return signals.kind == "trace" and loss_at_its_best(signals.series)


def learned_something(signals: Signals) -> bool:
    """True for a recorded run whose last losses lie at nine tenths of its first or below."""
    losses = _of_run(signals)
    last = 0 if losses is None else max(LOSSES, len(losses) // 10)  # Batches differ.
    return losses is not None and bool(0 <= np.median(losses[-last:]) <= HARDLY * np.median(losses[:LOSSES]))


def learned_half(signals: Signals) -> bool:
    """True for a recorded run whose last losses lie at half of its very first or below, whatever came between."""
    losses = _of_run(signals)
    return losses is not None and bool(0 <= np.median(losses[-LOSSES:]) <= 0.5 * losses[0])


def learned_well(signals: Signals, by: float = 2) -> bool:
    """True for a recorded run whose last losses lie at 1/e² of its first or below; at another power of 1/e with ``by``."""
    losses = _of_run(signals)
    return losses is not None and bool(0 <= np.median(losses[-LOSSES:]) <= math.exp(-by) * np.median(losses[:LOSSES]))


def stood_still(series: Iterable[Series]) -> tuple[float, float, int] | None:
    """The first and the last losses of a run that hardly fell in `STANDING` steps or more, and its steps; None for another one, and where losses are not positive, which have no ratio."""
    loss = _loss_in(series)
    if loss is None or len(loss.values) < 2 * LOSSES or loss.steps[-1] + 1 < STANDING:
        return None
    first, last = (float(np.median(part)) for part in (loss.values[:LOSSES], loss.values[-LOSSES:]))
    stood = bool((loss.values > 0).all()) and HARDLY * first < last < first / HARDLY
    return (first, last, int(loss.steps[-1]) + 1) if stood else None


def ruined(signals: Signals) -> bool:
    """True for a recorded run whose last losses reach four times its first: what is seen at its end is what ruin looks like."""
    losses = _of_run(signals)
    return losses is not None and not losses[-LOSSES:].max() <= 4 * losses[:LOSSES].max()


def _loss_in(series: Iterable[Series]) -> Series | None:
    return next((s for s in series if s.name == LOSS and s.layer is None and s.head is None), None)


def _of_run(signals: Signals) -> NDArray[np.float64] | None:
    """The losses of a recorded run; None for one of too few."""
    loss = _loss_in(signals.series)
    known = signals.kind == "trace" and loss is not None and len(loss.values) >= 2 * LOSSES
    return loss.values if known and loss is not None else None
