"""Runs whose updates move nothing, and whether gradients came meanwhile."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gnnstab.characters import counted
from gnnstab.records import Series, Signal, Signals
from gnnstab.records.vocabulary import GRADIENT_INPUT_RMS, GRADIENT_NORM, GRADIENT_OUTPUT_RMS, LOSS, OPTIMIZER_STANDING
from gnnstab.rules.queries import never_finite


def standing_still(signals: Signals, updates: float) -> list[Signal]:
    """So many updates and more that have moved nothing; numbers that are not finite are a reason of their own, which other rules tell."""
    if any(event.kind == "non-finite" for event in signals.events) or never_finite(signals):
        return []
    return [s for s in signals.find(OPTIMIZER_STANDING) if s.value >= updates]


def gradient_since(signals: Signals, since: int) -> bool:
    """True where a layer was seen to get a gradient in a recorded step from ``since`` on."""
    return any(
        bool((series.values[series.steps >= since] > 0).any())
        for series in signals.series
        if series.name in (GRADIENT_INPUT_RMS, GRADIENT_OUTPUT_RMS)
    )


class Flat(NamedTuple):
    """The end of a run at which every gradient is exactly 0."""

    since: int
    """Its first step."""

    steps: int
    loss: float
    best: float
    """The lowest loss of the run, below ``loss``, the median of those since then."""

    @property
    def signal(self) -> Signal:
        """The size of all gradients from there on."""
        return Signal(GRADIENT_NORM, 0.0, None, None, self.since, "training")

    @property
    def words(self) -> str:
        """What to say of it, and where to look."""
        return (
            f"every gradient is exactly 0 from step {self.since} to the end ({self.steps} steps), so that nothing is learned any more, though the loss "
            f"has been lower than it is now ({self.loss:.3g}, best {self.best:.3g}). Look for a policy or a softmax that has become one-hot to the last "
            "bit, units that have closed, a clamp that cuts every entry, or a sigmoid at its end."
        )


_LEAST = 0.01
"""Share of what the losses of a run lie apart up to which one is at its least."""


def ended_flat(signals: Signals, updates: float) -> Flat | None:
    """Steps at the end of a run, as many as ``updates`` and more, whose gradients are all exactly 0, after others that had some, while the loss has been lower.

    At the least loss none is needed: a margin that is kept, or a loss of 0. A run without losses tells nothing.
    """
    norms, losses = (_of_run(signals, name) for name in (GRADIENT_NORM, LOSS))
    if norms is None or losses is None or not np.isfinite(losses.values).all():
        return None
    given = np.flatnonzero(norms.values != 0)
    if not len(given) or given[-1] + 1 >= len(norms.values):
        return None
    since, end = int(norms.steps[given[-1] + 1]), int(norms.steps[-1])
    late = losses.values[losses.steps >= since]
    if end + 1 - since < updates or not len(late):
        return None
    now, best, worst = float(np.median(late)), float(losses.values.min()), float(losses.values.max())
    return Flat(since, end + 1 - since, now, best) if now > best + _LEAST * (worst - best) else None


def _of_run(signals: Signals, name: str) -> Series | None:
    return next((s for s in signals.series if s.name == name and s.layer is None and s.head is None), None)


def never_stepped(signals: Signals, passes: float) -> str:
    """What to say of a run that has moved no weight since no step of an optimizer was told; empty where it ended sooner than after ``passes`` losses."""
    told = signals.context.get("untold") or {}
    if not told.get("passes", 0) >= passes or told.get("moved") or signals.context.get("ended_by"):
        return ""
    begun = f"{told['passes']} forwards and losses came with gradients, and no weight has moved: "
    if told.get("optimizer"):
        return f"{begun}the optimizer never stepped. Call optimizer.step() after the backward; look at the condition that it stands behind."
    return (
        f"{begun}no update was made. Call optimizer.step() after the backward, and pass the optimizer to the Monitor."
    )


def strange_tensors(signal: Signal) -> str:
    """Whose the tensors are that the optimizers hold and the model has not."""
    strangers, held = int(signal.detail["strangers"]), int(signal.detail.get("held", 0))
    if not held:
        return "an optimizer holds tensors that are not in the model. Build it of the model's own parameters"
    if strangers == held:
        return (
            f"none of the {counted(held, 'tensor')} that the optimizer holds belongs to the model: it was built of another model, of a copy of this "
            "one, or before all parameters of this one were replaced. Build it of this model's parameters"
        )
    return (
        f"{held - strangers} of {counted(held, 'tensor')} that the optimizer holds belong to the model: either parameters were replaced "
        "after it was built, or it holds those of another module. Build it of the parameters that the model has now"
    )
