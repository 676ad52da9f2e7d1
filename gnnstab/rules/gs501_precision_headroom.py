"""GS501 precision-headroom."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gnnstab.errors import NotEvaluable
from gnnstab.records import Finding, Signal, Signals
from gnnstab.records.rises import Nearing
from gnnstab.records.vocabulary import PLACE_OVERFLOW, PRECISION_STEPS_LEFT
from gnnstab.rules.base import Rule, rule, threshold
from gnnstab.rules.queries import largest, measured, smallest
from gnnstab.rules.run_losses import trained_well
from gnnstab.signals.fitting import PACE

UNIT_ROUNDOFF = {"fp16": 2.0**-11, "bf16": 2.0**-8, "fp32": 2.0**-24, "fp64": 2.0**-53}
"""u of each dtype: relative error of one rounding."""


@rule("GS501", "precision-headroom", cause="precision", severity="error", confidence="high")
class PrecisionHeadroom(Rule):
    """The logits are too large for the number format of the run.

    ## Why it matters
    The relative error of an attention weight is about e^(u·|s|) − 1; measured at |s| = 131: .063 in bf16, .014 in fp16,
    at 1 180 .49 and .06. An fp16 run overflows earlier, since q·k is √C times as large (at 64 channels at |s| = 8 188):
    the softmax makes Inf − Inf of it and the target becomes NaN. A GradScaler guards gradients, not the forward pass.

    ## What to do
    Keep query, key and softmax in fp32: `with torch.autocast("cuda", enabled=False): conv(x.float(), edge_index)`. Then
    find out why the logits are that large (GS301, GS302, GS401).

    ## How it is measured
    u·max|s|, the rounding of the largest logit in the number format of its layer: the limit for a warning is |s| = 25
    in bf16, 205 in fp16, 1.7 million in fp32. For fp16 also the headroom, 65 504 over the largest q·k *before* the
    division by √C, and every operation of the forward that gives Inf of finite numbers.

    While a run goes on, in a few steps, the largest entry of every result of a training forward and its loss (in
    logarithms; of an `exp` the exponent itself), and the smallest number that a logarithm is taken of: what has come near the end of its format, and reaches it soon at a pace that does not
    slow down, is a warning. So are divisors that shrink towards the smallest number, and in fp16 the gradients, unless
    a GradScaler guards them.

    ## When it is silent
    The fp16 headroom of an fp32 run is information, and so is a warning in a run whose loss has ended at its best; of one
    that has learned (as GS302) rounding is in any case. A
    size that stops growing just before the end of its format is warned about all the same. What all keys of a target
    share cancels in exact arithmetic and still costs precision here.

    ## Sources
    Micikevicius et al. 2018, *Mixed Precision Training*, arXiv 1710.03740; IEEE 754. Derived, and measured on CPU.
    """

    warn_rounding: float = threshold(0.1, unit="u·max|s|", source="derived: attention weights off by 10 %")
    error_rounding: float = threshold(1.0, unit="u·max|s|", source="derived: attention weights off by a factor e")
    overflow: float = threshold(1.0, unit="× headroom", source="fp16: 65 504 is the largest number")
    fp16_information: float = threshold(
        16.0, unit="× headroom", source="heuristic: logits grow with the square of the scale, ×4 in scale uses it up"
    )

    close: float = threshold(
        0.6, unit="of ln(end)", source="derived: 780 in fp16, an exponent of 53 in fp32; most of what grows ends before"
    )
    gain: float = threshold(
        0.25, unit="of ln(end)", source="derived: × 16 in fp16, an exponent that has risen by 22 in fp32"
    )
    soon: float = threshold(20.0, unit="steps", source="heuristic: time to act, and near enough for a straight line")

    def nearing(self, near: Nearing) -> Iterator[Finding]:
        """The finding of an operation that heads for an end of its number format while a run goes on."""
        left = near.steps_left(self.close, self.gain, PACE)
        if left > self.soon:
            return
        size = math.exp(near.looks[-1][1] * (-1 if near.shrinks else 1))
        where = f", {near.place}" if near.place else ""
        if near.shrinks and near.operation.startswith("log"):
            what, then = f"the smallest number that {near.operation} gets is {size:.3g}", "0, and its logarithm −Inf"
            advice = "Take the logarithm in one function (log_softmax, logsigmoid, a loss on logits), or add an eps"
        elif near.shrinks:
            what, then = f"what is divided by is at most {size:.3g}", "0, and the quotient Inf or NaN"
            advice = "Add an eps"
        else:
            what = f"{near.operation} gives values up to {size:.3g}"
            then = f"Inf: {near.format} ends at {math.exp(near.end):.3g}"
            advice = "Bound it, subtract its maximum before an exponential, or compute it in a wider format"
        yield self.finding(
            f"at step {near.step} {what}{where}. At the pace of the latest steps it is {then} in about {left:.0f} steps. {advice}.",
            severity="warning",
            limit=self.soon,
            name=PRECISION_STEPS_LEFT,
            value=left,
            step=near.step,
            unit="steps",
            confidence="medium",
        )

    def check(self, signals: Signals) -> Iterator[Finding]:
        """Per layer: rounding in the run's dtype, then fp16 headroom."""
        for lost in signals.find(PLACE_OVERFLOW):
            yield self._overflowed(lost)
        if (
            not signals.find(PLACE_OVERFLOW)
            and not signals.find("score.max_abs")
            and not signals.find("precision.rounding")
            and not signals.find("precision.fp16_headroom")
        ):
            raise NotEvaluable(signals.why_missing("score.max_abs"))
        precision = str(signals.context.get("precision") or "fp32")
        for layer in signals.attention_layers:
            # Attention that runs outside autocast is judged by its own format, not by that of the run.
            yield from self._layer(signals, layer.name, layer.score_format or precision)

    def _overflowed(self, lost: Signal) -> Finding:
        line, text = (str(lost.detail.get(key, "")) for key in ("line", "text"))
        where = f", {line}: `{text}`" if line else ""
        return self.finding(
            f"{lost.layer}: in fp16 {lost.detail.get('operation')} gives Inf for {lost.value:.0f} entries, of finite numbers{where}. What is divided "
            "by it is 0 and passes no gradient, although everything behind it may be finite. Compute it in fp32: "
            "with torch.autocast(device, enabled=False), on x.float().",
            limit=0.0,
            signal=lost,
        )

    def _layer(self, signals: Signals, layer: str, precision: str) -> Iterator[Finding]:
        headroom = smallest_of(signals, "precision.fp16_headroom", layer)
        if precision == "fp16" and headroom is not None and headroom.value < self.overflow:
            yield self.finding(
                f"{layer}: q·k exceeds fp16's 65 504 before the division by √C (headroom {headroom.value:.2g}×): Inf − Inf in "
                "the softmax is NaN. Run the layer outside autocast in fp32.",
                limit=self.overflow,
                signal=headroom,
            )
            return
        rounding = self._rounding(signals, layer, precision)
        if rounding is not None and rounding.value >= self.warn_rounding:
            severe = rounding.value >= self.error_rounding
            limit = self.error_rounding if severe else self.warn_rounding
            off = "a factor of 2.7 or more" if severe else f"{100 * math.expm1(rounding.value):.3g} %"
            yield self.finding(
                f"{layer}: in {precision} the largest logit is rounded by {rounding.value:.2g} (limit {limit:g}), which "
                f"leaves attention weights off by {off}. {remedy(precision)}",
                severity="error" if severe else "info" if trained_well(signals) else "warning",
                limit=limit,
                signal=rounding,
            )
        elif precision != "fp16" and headroom is not None and headroom.value < self.fp16_information:
            state = "overflows" if headroom.value < self.overflow else "leaves little room"
            yield self.finding(
                f"{layer}: q·k {state} in fp16 (headroom {headroom.value:.2g}×). Fine in {precision}; do not run this layer in fp16.",
                severity="info",
                limit=self.fp16_information,
                signal=headroom,
            )

    @staticmethod
    def _rounding(signals: Signals, layer: str, precision: str) -> Signal | None:
        found = measured(signals.find("precision.rounding", layer=layer))
        if found:
            return largest(found)
        scores = measured(signals.find("score.max_abs", layer=layer))
        if not scores or precision not in UNIT_ROUNDOFF:
            return None
        worst = largest(scores)
        return Signal(
            "precision.rounding", UNIT_ROUNDOFF[precision] * worst.value, layer, worst.head, worst.step, worst.source
        )


def remedy(precision: str) -> str:
    """What to do about logits that a format rounds too coarsely."""
    if precision == "fp32":
        return "Bring the logits down: scale the query weights, or normalise queries and keys; a wider format is seldom the answer."
    return "Keep query, key and softmax in fp32."


def smallest_of(signals: Signals, name: str, layer: str) -> Signal | None:
    """The smallest measured value of a signal at one layer, or None."""
    found = measured(signals.find(name, layer=layer))
    return smallest(found) if found else None
