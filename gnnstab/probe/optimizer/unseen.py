"""What keeps a model from learning what holds for other rows too: steps are taken for half of those that the loss reads, and the loss of all is looked at."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gnnstab.errors import UsageError
from gnnstab.probe.optimizer._alike_kinds import alike_kinds
from gnnstab.probe.optimizer._halved import BY_HEART, halved
from gnnstab.probe.optimizer._many_periods import many_periods
from gnnstab.probe.optimizer._narrow_norms import narrow_norms
from gnnstab.probe.optimizer._own_terms import without_own_terms
from gnnstab.probe.optimizer._row_lengths import row_lengths
from gnnstab.probe.optimizer._suspects import Suspect
from gnnstab.probe.optimizer._turned_masks import turned_masks
from gnnstab.probe.optimizer._zeros import of_constants, of_zeros
from gnnstab.probe.optimizer.learning import (
    LEARNS,
    MARGIN,
    at_any_rate,
    on_its_way,
    progress,
    seen,
)
from gnnstab.probe.optimizer.softening import STEPS
from gnnstab.records import Signal
from gnnstab.records.vocabulary import OPTIMIZER_BY_HEART, OPTIMIZER_UNSEEN

if TYPE_CHECKING:
    from gnnstab.probe.optimizer.optimizer_steps import Bench

AROUND = (1.0, 3.0, 10.0, 1 / 3)
"""Factors on the rate that are tried with and without what is suspected."""


def unseen_signals(bench: Bench) -> Iterator[Signal]:
    """Share of the progress, in ln(loss) of all rows by steps for half of them, that something about data or graph takes; nothing where nothing is suspected, or nothing can be tried."""
    with suppress(UsageError):
        yield from _unseen(bench)


def _unseen(bench: Bench) -> Iterator[Signal]:
    alike = seen(bench, alike_kinds)
    looks = (narrow_norms, row_lengths, without_own_terms, many_periods)
    tried = [(one, bench) for look in looks for one in seen(bench, look)]
    tried += turned_masks(bench)
    part = halved(bench) if tried or alike else None
    if part is None:
        return
    start = part.trial(0).losses[0]
    first = min(start, of_zeros(bench), of_constants(bench))
    own, _, _ = at_any_rate(part, first, 0.0, AROUND)
    detail: dict[str, Any] = {
        "first": start,
        "best": first * math.exp(-own),
        "zeros": first if first < start else None,
        "steps": STEPS,
    }
    found = []
    for suspect, changed in tried:
        reached = _reached(replace(part, calls=changed.calls), suspect, first, own)
        if reached >= own + MARGIN:
            found.append((reached, suspect))
    if found:
        reached, suspect = max(found, key=lambda one: one[0])
        # To learn slowly is no fault of what makes it faster; a mask is the right way round at any pace.
        if suspect.cause == "masking" or not on_its_way(part, first):
            yield _told(OPTIMIZER_UNSEEN, suspect, 1 - own / reached, detail | {"undone": first * math.exp(-reached)})
    elif alike and own < BY_HEART / 2:
        learned = at_any_rate(bench, first, 0.0, AROUND)[0]
        if learned > BY_HEART:
            yield _told(
                OPTIMIZER_BY_HEART, alike[0], 1 - own / learned, detail | {"by_heart": first * math.exp(-learned)}
            )


def _reached(part: Bench, suspect: Suspect, first: float, own: float) -> float:
    """Most progress without a suspect, at the rate as it is and at those around it; 0 where it cannot be undone."""
    best, enough = 0.0, max(LEARNS, 2 * own) + MARGIN
    for factor in AROUND:
        try:
            with suspect.mode:
                losses = part.trial(
                    STEPS, factor=factor, edit=suspect.undo, until=lambda losses: progress(first, losses) >= enough
                ).losses
        except UsageError:  # The change does not fit the model.
            return best
        best = max(best, progress(first, losses))
        if best >= enough:
            break
    return best if best >= LEARNS else 0.0


def _told(signal: str, suspect: Suspect, share: float, detail: dict[str, Any]) -> Signal:
    told = {"cause": suspect.cause, "names": list(suspect.names[:40]), "count": len(suspect.names)}
    told |= {"words": suspect.words, "suspect": suspect.suspect}
    return Signal(signal, max(0.0, share), source="steps", detail=told | detail)
