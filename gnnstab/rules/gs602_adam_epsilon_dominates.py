"""GS602 adam-epsilon-dominates."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gnnstab.characters import counted
from gnnstab.errors import NotApplicable
from gnnstab.layers import plays
from gnnstab.records import Finding, Signal, Signals
from gnnstab.records.vocabulary import (
    LOSS,
    OPTIMIZER_BELOW_EPS_SHARE,
    OPTIMIZER_EPS_DAMPING,
    OPTIMIZER_EPS_LOST,
    OPTIMIZER_LOSS_RISE,
)
from gnnstab.rules.base import Rule, rule, threshold
from gnnstab.rules.queries import largest, percent, smallest


@rule("GS602", "adam-epsilon-dominates", cause="adam-epsilon", severity="warning", confidence="high")
class AdamEpsilonDominates(Rule):
    """Adam's eps is larger than most of the gradient it divides by, or 0 in the format of the weights or where a gradient is.

    ## Why it matters
    Adam's step is m̂/(√v̂ + eps). Where √v̂ < eps it is proportional to the gradient, as with SGD, and the adaptivity
    that hides small gradients of early layers is gone: a default network of 12 layers does not train with 1e-5 (R²
    −.07/−.01) and does with 1e-8 (.71/.92).

    ## What to do
    `Adam(..., eps=1e-8)`, the default; the 1e-5 of reinforcement-learning recipes is meant for other networks. In deep
    stacks the gradient itself needs the fix first (GS203).

    ## How it is measured
    With model, batch, loss and optimizer: the change of the output in one real step on a copy, over that of the same
    step with an eps of 1e-20. At the default eps it is a warning where the loss falls without it in the same steps, or
    where that of the run stands still. From a file with the optimizer's state: the share of entries of the value and
    skip weights whose √v̂ lies below eps. An eps of exactly 0, where entries of a gradient are 0 and one step on a
    copy, or an update of the run, has made weights non-finite. An eps that is 0 in the format of the weights, as 1e-8
    is in fp16: an error where an update, or steps on a copy, have made weights non-finite, else information.

    ## When it is silent
    For query and key weights, whose gradients are tiny under uniform attention, and for embeddings of rare ids.

    ## Sources
    Kingma and Ba 2015, arXiv 1412.6980; Everett et al. 2024, *Scaling Exponents Across Parameterizations and
    Optimizers*, arXiv 2407.05872. Measured: 10 and 12 layers, eps 1e-5 and 1e-8.
    """

    usual_eps: float = threshold(
        1e-8,
        unit="eps",
        source="Adam's default: at it a share below eps is a gradient that is absent, not one that is damped",
    )
    stands: float = threshold(0.1, unit="ln(loss)", source="heuristic: the loss has fallen by less than a tenth")
    run: float = threshold(50, unit="steps", source="as GS603: a shorter run may not have begun to learn")
    least_kept: float = threshold(
        0.5,
        unit="share of the step",
        source="measured: .98 to 1.0 in healthy programs, below .2 with an eps that is too large",
    )
    share: float = threshold(0.5, unit="share of entries", source="measured: .95 in a network that stops training")

    def check(self, signals: Signals) -> Iterator[Finding]:
        """One finding for steps that were tried, else one per layer."""
        lost = [*self._unguarded(signals), *self._rounded(signals)]
        yield from lost
        if any(finding.severity == "error" for finding in lost):
            return
        tried = signals.find(OPTIMIZER_EPS_DAMPING)
        if tried:
            # Steps that were taken both ways say more than a single update.
            yield from self._damped(signals, smallest([s for s in tried if "fell" in s.detail] or tried))
            return
        per_layer: dict[str, list[Signal]] = {}
        for signal in (signals.find if lost else signals.need)(OPTIMIZER_BELOW_EPS_SHARE):
            parameter = str(signal.detail.get("parameter", ""))
            if not parameter or plays(parameter, "value") or plays(parameter, "skip"):
                per_layer.setdefault(signal.layer or "", []).append(signal)
        if not per_layer and not lost:
            raise NotApplicable("the optimizer's state holds no value or skip weight of an attention layer")
        for layer, found in per_layer.items():
            worst = largest(found)
            if worst.value > self.share:
                eps = worst.detail.get("eps")
                size = f" ({eps:g})" if isinstance(eps, (int, float)) else ""
                usual = isinstance(eps, (int, float)) and eps <= self.usual_eps
                yield self.finding(
                    f"{worst.detail.get('parameter') or layer}: {percent(worst.value)} of its entries have gradients below Adam's eps{size}: "
                    f"{'the gradient itself is missing there' if usual else 'their steps are damped away. Use eps=1e-8'}.",
                    severity="info" if usual else "warning",
                    limit=self.share,
                    signal=worst,
                )

    def _unguarded(self, signals: Signals) -> Iterator[Finding]:
        """An eps of 0 under which weights have become non-finite, in a step on a copy or behind an update of the run, before which all was finite."""
        broke = min((e.step for e in signals.events if e.kind == "non-finite"), default=-1)
        for signal in signals.find(OPTIMIZER_EPS_LOST):
            behind = broke > int(signal.detail.get("worst_step", 0)) or signals.kind == "model"
            if signal.detail.get("eps") == 0 and signal.value > 0 and behind:
                yield self.finding(
                    f"the eps of {signal.detail.get('optimizer', 'the optimizer')} is 0, and {signal.value:.0f} entries of the weights get a "
                    "gradient of exactly 0: their update divides 0 by 0, and they become NaN. Use eps=1e-8.",
                    severity="error",
                    limit=0.0,
                    signal=signal,
                )

    def _rounded(self, signals: Signals) -> Iterator[Finding]:
        """An eps that is 0 guards no division: the first gradient of exactly 0, or too small to be squared, gives 0/0."""
        weights = [e for e in signals.events if e.kind == "non-finite" and e.stage == "weight"]
        broke = bool(weights) or any(math.isinf(s.value) for s in signals.find(OPTIMIZER_LOSS_RISE))
        for signal in (s for s in signals.find(OPTIMIZER_EPS_LOST) if s.detail.get("eps") != 0):
            formats = ", ".join(map(str, signal.detail.get("formats", ()))) or "their format"
            told = (
                "updates divide 0 by 0, and the weights have become non-finite"
                if broke
                else "an update may divide 0 by 0"
            )
            yield self.finding(
                f"the eps of {signal.detail.get('optimizer', 'the optimizer')} ({signal.detail.get('eps')}) is 0 in {formats}, in which "
                f"{counted(signal.value, 'parameter', 'is', 'are')} held: {told}. Keep the weights in float32 and compute in 16 bits under torch.autocast, or "
                "use an eps of 1e-4.",
                severity="error" if broke else "info",
                limit=0.0,
                signal=signal,
            )

    def _damped(self, signals: Signals, tried: Signal) -> Iterator[Finding]:
        if not tried.value < self.least_kept:
            return
        eps = tried.detail.get("eps")
        usual = isinstance(eps, (int, float)) and eps <= self.usual_eps
        size = f" of {eps:g}" if isinstance(eps, (int, float)) else ""
        held_up = self._held_up(signals, tried)
        cure = "the gradient itself is tiny there" if usual else "use eps=1e-8"
        if usual and held_up:
            cure = f"{held_up}. Measure targets and loss in units in which they are about 1, or use a smaller eps"
        yield self.finding(
            f"with its eps{size} a step of {tried.detail.get('optimizer', 'the optimizer')} changes the output by {percent(tried.value)} of "
            f"what it does without eps, tried on a copy: the gradients lie below it; {cure}.",
            severity="info" if usual and not held_up else "warning",
            limit=self.least_kept,
            signal=tried,
        )

    def _held_up(self, signals: Signals, tried: Signal) -> str:
        """What the loss says of steps that the default eps damps, in words; empty where they are not missed."""
        fell = tried.detail.get("fell")
        if isinstance(fell, (list, tuple)) and len(fell) == 2:
            own, free = map(float, fell)
            missed = free > self.stands and own < self.least_kept * free
            return f"without it the same steps lower the loss by {percent(-math.expm1(-free))}" if missed else ""
        for told in (s.detail for s in signals.find(LOSS) if "best" in s.detail):
            start, best = float(told["start"]), float(told["best"])
            if int(told["steps"]) >= self.run and 0 < best <= start and math.log(start / best) < self.stands:
                return f"the loss of the run stands still, at {best:.3g}"
        return ""
