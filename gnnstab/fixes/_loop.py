"""Fixes of the training loop: what its optimizer and its scaler are told to do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gnnstab.fixes.by_hand import ByHand
from gnnstab.fixes.printing import variable
from gnnstab.records import LayerFacts, Signals
from gnnstab.records.vocabulary import (
    OPTIMIZER_CLIPPED_SCALED,
    OPTIMIZER_DECAY,
    OPTIMIZER_EPS_LOST,
    OPTIMIZER_LOSS_RISE,
    OPTIMIZER_LR_JUMP,
    OPTIMIZER_MOMENTUM,
    OPTIMIZER_NEGATIVE_RATE,
)
from gnnstab.rules.recalled import findings_in


def beyond(signals: Signals, name: str) -> bool:
    """True where an optimizer at hand, or one that a run was told of, has this setting beyond its limit."""
    return bool(signals.find(name)) or any(finding.signal == name for finding in findings_in(signals.events))


def moves_scaled(signals: Signals) -> bool:
    """True of a run whose optimizer, or clipping, was given gradients that a scaler had scaled, and nobody unscaled."""
    return bool(signals.context.get("scaled_steps") or signals.find(OPTIMIZER_CLIPPED_SCALED))


class CorrectSettings(ByHand):
    """A momentum below 1, and a rate that does not fall below 0."""

    name = "correct-settings"
    title = "settings within their limits"
    causes = ("learning-rate",)
    signal = OPTIMIZER_MOMENTUM
    where = "what the optimizer is given"

    def helps(self, signals: Signals, **options: Any) -> bool:
        """True where a setting is beyond its limit."""
        return beyond(signals, OPTIMIZER_MOMENTUM) or beyond(signals, OPTIMIZER_NEGATIVE_RATE)

    def _lines(self, layers: Sequence[LayerFacts], signals: Signals, options: Mapping[str, Any]) -> str:
        momentum, rate = (beyond(signals, name) for name in (OPTIMIZER_MOMENTUM, OPTIMIZER_NEGATIVE_RATE))
        change = 'for group in optimizer.param_groups:\n    group["momentum"] = 0.9  # below 1\n' * momentum
        if rate or not momentum:
            change += "LambdaLR(optimizer, lambda step: max(0.0, factor(step)))  # factor: that of your schedule"
        return change.rstrip()


class ScalerStep(ByHand):
    """Let the scaler divide the gradients that it has scaled, before the optimizer reads them."""

    name = "scaler-step"
    title = "the scaler steps the optimizer"
    causes = ("learning-rate",)
    signal = OPTIMIZER_LR_JUMP
    where = "the training loop"

    def helps(self, signals: Signals, **options: Any) -> bool:
        """True where the optimizer steps with scaled gradients."""
        return moves_scaled(signals)

    def _lines(self, layers: Sequence[LayerFacts], signals: Signals, options: Mapping[str, Any]) -> str:
        clipped = [float(s.detail.get("limit", 1.0)) for s in signals.find(OPTIMIZER_CLIPPED_SCALED)]
        clip = (
            "scaler.unscale_(optimizer)  # before the clipping, which else sees scaled gradients\n"
            f"torch.nn.utils.clip_grad_norm_(model.parameters(), {clipped[0]:.3g})\n"
            if clipped
            else ""
        )
        return (
            f"scaler.scale(loss).backward()\n{clip}"
            "scaler.step(optimizer)  # in place of optimizer.step(): divides the gradients by the scale\n"
            "scaler.update()"
        )


class FloatWeights(ByHand):
    """Weights in float32, and 16 bits for what is computed alone; or an eps that 16 bits hold."""

    name = "fp32-weights"
    title = "weights in float32"
    causes = ("adam-epsilon",)
    signal = OPTIMIZER_EPS_LOST
    cost = "twice the memory of the weights"
    where = "what the optimizer is given"

    def helps(self, signals: Signals, **options: Any) -> bool:
        """True where eps is 0 in the format of the weights."""
        return eps_broke(signals)

    def _lines(self, layers: Sequence[LayerFacts], signals: Signals, options: Mapping[str, Any]) -> str:
        named = variable(str(signals.context.get("optimizer", "Adam")))
        return (
            f"model = model.float()  # before torch.optim.{named}(model.parameters()); or eps=1e-4\n"
            'with torch.autocast("cuda", dtype=torch.float16):  # computes in 16 bits\n'
            "    loss = criterion(model(batch), target)"
        )


def eps_broke(signals: Signals) -> bool:
    """True where eps is 0 in the format of the weights, and the first that went non-finite are weights, or trial steps broke."""
    lost = any(s.detail.get("eps") != 0 for s in signals.find(OPTIMIZER_EPS_LOST))
    events = [event for event in signals.events if event.kind == "non-finite"]
    first = min(events, key=lambda event: event.step, default=None)
    broke = (
        any(math.isinf(s.value) for s in signals.find(OPTIMIZER_LOSS_RISE))
        if first is None
        else first.stage == "weight"
    )
    return lost and broke


def in_place_of_a_lower_rate(signals: Signals) -> list[str]:
    """Fixes of what makes any rate too high; empty where nothing of the kind was seen."""
    scaled = ["scaler-step"] if moves_scaled(signals) else []
    settings = (OPTIMIZER_MOMENTUM, OPTIMIZER_NEGATIVE_RATE)
    corrected = ["correct-settings"] if any(beyond(signals, name) for name in settings) else []
    decay = ["lower-decay"] if beyond(signals, OPTIMIZER_DECAY) else []
    return [*scaled, *corrected, *decay]
