"""GS503 underflow."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gnnstab.records import Finding, Signal, Signals
from gnnstab.records.vocabulary import (
    ATTENTION_VANISHED_SHARE,
    LOSS,
    OPTIMIZER_FEW_BITS,
    OPTIMIZER_LOST_SHARE,
    OPTIMIZER_LR_JUMP,
)
from gnnstab.rules._standing import standing_still
from gnnstab.rules.base import Rule, rule, threshold
from gnnstab.rules.queries import largest, measured, percent


@rule("GS503", "underflow", cause="precision", severity="warning", confidence="medium")
class Underflow(Rule):
    """Values fall below the smallest normal number of the format.

    ## Why it matters
    Such numbers (below 6.1e-5 in fp16, 1.2e-38 in bf16 and fp32) lose digits and then become 0; many devices flush them
    at once. A gradient that has become 0 does not come back, and Adam divides by the eps of what is left.

    ## What to do
    Keep the weights in float32 and compute in 16 bits under `torch.autocast`. In fp16: a GradScaler for the gradients,
    bf16 for the range. Otherwise find what shrinks the signal (GS203): 32 layers with depth-scaled Xavier weights and
    no identity path end at exactly 0.

    ## How it is measured
    Each of these by itself:

    - the share of non-zero entries of a layer's output below the smallest normal number;
    - in a run whose weights are held in 16 bits: the share of entries that an update leaves as they are, less than half
      of the distance to the next number (median over steps 0, 50, 100, 200, …; at a constant rate the latest of them as
      well), or one step of your optimizer on a copy;
    - the share of the non-zero entries of the gradients that are one to four times the smallest number of fp16;
    - of attention that is written as exponentials over their sum: the share of the targets at which all of them are 0.

    ## When it is silent
    Attention weights of neighbours that do not count are meant to underflow. Rounding of the weights is information once
    the loss of the run has fallen by e²: updates are small where little is left to learn. Optimizers that round at random lose
    nothing on average.

    ## Sources
    Micikevicius et al. 2018, *Mixed Precision Training*, arXiv 1710.03740; IEEE 754.
    """

    share: float = threshold(0.2, unit="share of entries", source="heuristic: one entry in five has lost digits")

    vanished: float = threshold(
        0.02,
        unit="share of targets",
        source="derived: 0 behind every softmax that subtracts the maximum of each target",
    )
    lost: float = threshold(
        0.5, unit="share of entries", source="heuristic: half of what the updates ask for is not done"
    )
    learned: float = threshold(
        2.0, unit="ln(loss)", source="as GS609: from there on nothing keeps a model from learning"
    )
    updates: float = threshold(
        8, unit="updates", source="as GS604: so many that have moved no weight need no third measurement"
    )
    measurements: float = threshold(
        3, unit="steps", source="a rate that changes may begin near 0; the third is step 100"
    )

    def check(self, signals: Signals) -> Iterator[Finding]:
        """One finding per layer, and one for the weights."""
        found = [*self._vanished(signals), *self._updates(signals), *self._gradients(signals)]
        yield from found
        # A network without a layer whose outputs are measured has weights and gradients all the same.
        shares = (signals.find if found else signals.need)("precision.underflow_share")
        per_layer: dict[str | None, list[Signal]] = {}
        for signal in measured(shares):
            per_layer.setdefault(signal.layer, []).append(signal)
        for layer, own in per_layer.items():
            if largest(own).value > self.share:
                yield self.finding(
                    f"{layer or 'the model'}: {percent(largest(own).value)} of the non-zero outputs lie below the smallest normal number "
                    f"of {signals.context.get('precision') or 'their dtype'}. Find what shrinks the signal, or use a format with more range.",
                    limit=self.share,
                    signal=largest(own),
                )

    def _vanished(self, signals: Signals) -> Iterator[Finding]:
        """Exponentials that were shifted by one maximum for all targets are 0 where a target's own maximum lies far below it."""
        found = measured(signals.find(ATTENTION_VANISHED_SHARE))
        for layer in dict.fromkeys(s.layer for s in found):
            signal = largest([s for s in found if s.layer == layer])
            if signal.value > self.vanished:
                yield self.finding(
                    f"{layer}: at {percent(signal.value)} of its targets the exponentials of all scores underflow to 0, so that they hear nothing of "
                    "their neighbours and get no gradient. Subtract the largest score of each target, in place of one maximum for all of them, "
                    "or use torch_geometric.utils.softmax.",
                    limit=self.vanished,
                    signal=signal,
                    confidence="high",
                )

    def _updates(self, signals: Signals) -> Iterator[Finding]:
        # A step on a copy is taken at the largest rate that is known.
        constant = signals.kind == "model" or any(
            jump.detail.get("constant") for jump in signals.find(OPTIMIZER_LR_JUMP)
        )
        still = bool(standing_still(signals, self.updates))
        for signal in measured(signals.find(OPTIMIZER_LOST_SHARE)):
            # At a constant rate no update is much larger than the first, and the latest shows what the others will be.
            share = max(signal.value, float(signal.detail.get("last", 0.0))) if constant else signal.value
            if share > self.lost and (
                constant or still or int(signal.detail.get("measurements", 1)) >= self.measurements
            ):
                yield self.finding(
                    f"{percent(share)} of the weights' entries stay as they are in an update that asks them to move: in 16 bits (fp16, "
                    "bf16) it is rounded away. Keep the weights in float32, and compute in 16 bits under torch.autocast.",
                    severity="info" if self._learned(signals) else None,
                    limit=self.lost,
                    signal=signal,
                )

    def _learned(self, signals: Signals) -> bool:
        """True for a run that has learned: near its end updates grow small against weights that need no more of them."""
        told = (s.detail for s in signals.find(LOSS) if {"best", "start"} <= s.detail.keys())
        return any(0 < float(one["best"]) <= math.exp(-self.learned) * float(one["start"]) for one in told)

    def _gradients(self, signals: Signals) -> Iterator[Finding]:
        for signal in measured(signals.find(OPTIMIZER_FEW_BITS)):
            if signal.value > self.share:
                yield self.finding(
                    f"gradients are whole multiples of 6e-8, the smallest number of fp16, and {percent(signal.value)} of those that are not "
                    "0 are at most four times that: they have one or two bits left, and smaller ones have become 0. Scale the loss "
                    "(torch.amp.GradScaler), or use bf16.",
                    limit=self.share,
                    signal=signal,
                )
