"""Runs whose updates move nothing, and whether gradients came meanwhile."""

from __future__ import annotations

from gnnstab.characters import counted
from gnnstab.records import Signal, Signals
from gnnstab.records.vocabulary import GRADIENT_INPUT_RMS, GRADIENT_OUTPUT_RMS, OPTIMIZER_STANDING
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
