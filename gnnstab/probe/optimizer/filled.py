"""The same steps without the rows that fill graphs up to a common size."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING

from gnnstab.errors import UsageError
from gnnstab.probe.batches.named_tensors import named_tensors
from gnnstab.probe.optimizer._halved import halved
from gnnstab.probe.optimizer.learning import LEARNS_WELL, MARGIN, progress
from gnnstab.probe.optimizer.softening import STEPS
from gnnstab.probe.places import filled_rows
from gnnstab.probe.replaying.replica import mapped
from gnnstab.records import Signal
from gnnstab.records.vocabulary import OPTIMIZER_FILLED

if TYPE_CHECKING:
    from gnnstab.probe.optimizer.optimizer_steps import Bench


def filled_signals(bench: Bench) -> Iterator[Signal]:
    """From steps for half of the graphs, where these are many enough, and else for all: how much lower, in ln(loss), the same number of steps comes without these rows, at most, until nothing is left to learn; nothing where a batch has none."""
    calls, batches = [], []
    for (args, kwargs), batch in zip(bench.calls, bench.batches, strict=True):
        filled = filled_rows(named_tensors(args, kwargs, bench.model))
        if filled is None:
            return
        calls.append(mapped((tuple(args), dict(kwargs)), filled.taken_out))
        batches.append(mapped(batch, filled.taken_out))
    with suppress(UsageError):  # The model, or the loss, takes no graphs of other sizes.
        other = replace(bench, calls=calls, batches=batches)
        half, other_half = halved(bench), halved(other)
        if half is not None and other_half is not None:
            bench, other = half, other_half
        without = other.trial(STEPS, until=lambda seen: progress(seen[0], seen) >= LEARNS_WELL + MARGIN).losses
        as_is = bench.trial(len(without) - 1).losses
        gaps = [
            math.log(a / b) for a, b in zip(accumulate(as_is, min), accumulate(without, min), strict=False) if a > 0 < b
        ]
        if gaps and all(map(math.isfinite, (*as_is, *without))):
            yield Signal(OPTIMIZER_FILLED, max(gaps), source="steps", detail={"steps": len(without) - 1})
