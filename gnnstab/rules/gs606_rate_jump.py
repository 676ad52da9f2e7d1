"""GS606 rate-jump."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gnnstab.characters import counted
from gnnstab.records import Finding, Signals
from gnnstab.records.settings import LARGEST_DECAY, MOST_MOMENTUM, Setting
from gnnstab.records.vocabulary import (
    OPTIMIZER_CLIPPED_SCALED,
    OPTIMIZER_DECAY,
    OPTIMIZER_LR_JUMP,
    OPTIMIZER_MOMENTUM,
    OPTIMIZER_NEGATIVE_RATE,
)
from gnnstab.rules.base import Rule, rule, threshold
from gnnstab.rules.queries import largest


@rule("GS606", "rate-jump", cause="learning-rate", severity="warning", confidence="medium")
class RateJump(Rule):
    """The learning rate rises tenfold or more from one step to the next, beyond all that the run has had, or a setting of the optimizer leaves its range.

    ## Why it matters
    The weights, and the moments of an optimizer, fit the rate that they were trained with: the curvature rises until
    steps of that rate just do not overshoot, so that one ten times as large does. With a momentum from 1 on every
    gradient stays in all later updates; below a rate of 0 updates climb; a large decay takes weights what they learn.

    ## What to do
    Print `optimizer.param_groups[0]["lr"]` at the step that is named and correct the schedule: one that is stepped per
    batch instead of per epoch, that multiplies where it should divide, a decay of .5 meant as 5e-4, a warm-up that ends
    in the unscaled rate. Where the higher rate is meant, warm up to it over some hundred steps.

    ## How it is measured
    The largest factor between the rates of two recorded steps in a row that leads beyond every rate before; while a run
    goes on, of every parameter group, momentum, sign and finiteness of the rate, and rate times weight decay (under SGD, and under AdamW
    where 1/decay, the size that it leaves to weights, is at most .1). With `Monitor(scaler=)`: updates with gradients that
    no `scaler.step` or `unscale_` has divided by the scale, where the run has none that were; gradients whose scaled norm
    is one and the same in eight recorded steps or more, as of a clipping in front of `unscale_`.

    ## When it is silent
    In the first five steps, where a warm-up multiplies its rate, and at a restart that goes back to a rate that the run
    has had. While a run goes on, at a tenfold step of its first 500 up to a rate that is usual: the default of an
    optimizer of Adam's kind, .1 under SGD. Some warm-ups are one such step (PyTorch's `ConstantLR`, the ResNet paper).
    At the end of a run a jump is information where the loss has come down after it and ended at its best. A second
    phase with new data or unfrozen layers may ask for a higher rate.

    ## Sources
    Cohen et al. 2021, *Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability*, arXiv
    2103.00065. He et al. 2016, *Deep Residual Learning for Image Recognition*, arXiv 1512.03385: .01 for about 400
    steps, then .1.
    """

    jump: float = threshold(
        10.0, unit="× the step before", source="heuristic: of usual schedules only a warm-up of one step does it"
    )

    warm_up: float = threshold(500, unit="steps", source="literature: He et al. 2016 warm up for about 400")

    most: float = threshold(
        MOST_MOMENTUM, unit="momentum", source="derived: the sum of m, m², m³, … has a limit below 1 alone"
    )
    decay: float = threshold(
        LARGEST_DECAY,
        unit="share of a weight, per step",
        source="derived: weights halve in fewer than 35 steps; a rate of .1 with a decay of 5e-4 takes 5e-5",
    )

    def beyond(self, step: int | None, setting: Setting) -> Finding:
        """The finding of an update under a setting that is beyond its limit; ``step`` is None before any."""
        value, group = setting.value, f" of parameter group {setting.group}" if setting.group else ""
        limits = {OPTIMIZER_MOMENTUM: ("momentum", self.most), OPTIMIZER_DECAY: ("weight decay", self.decay)}
        name, limit = limits.get(setting.signal, ("learning rate", 0.0))
        if not math.isfinite(value):
            said = f"the {name}{group} is {value}: an update leaves NaN or Inf in every weight that has a gradient. Correct its schedule."
        elif setting.signal == OPTIMIZER_MOMENTUM:
            said = (
                f"the momentum{group} is {value:.4g}: no gradient leaves the update again, and from 1 on updates grow by themselves, whatever "
                "the loss is. Correct its schedule: it must stay below 1."
            )
        elif setting.signal == OPTIMIZER_DECAY:
            said = (
                f"the weight decay{group} takes {value:.2g} of every weight away in each step (rate × decay), so that weights halve in {_halving(value)}, "
                "whatever they have learned. Lower the decay, or correct its schedule."
            )
        else:
            said = f"the learning rate{group} is {value:.3g}: updates go uphill. Correct its schedule: it must not fall below 0."
        at = "" if step is None else f"at step {step} "
        return self.finding(f"{at}{said}", limit=limit, name=setting.signal, value=value, step=step)

    def check(self, signals: Signals) -> Iterator[Finding]:
        """One finding per setting of an optimizer that is at hand, and one for the run: the largest jump."""
        scaled = signals.context.get("scaled_steps")
        if scaled:
            yield self.finding(
                f"{counted(scaled['steps'], 'update')} got gradients that were still scaled, by {scaled['scale']:.4g}: the scaler was given, and "
                "scaler.step(optimizer) never called. Call it in place of optimizer.step(), and scaler.update() behind it.",
                limit=1.0,
                name="",
                value=float(scaled["scale"]),
                unit="× the gradient",
            )
        clipped = signals.find(OPTIMIZER_CLIPPED_SCALED)
        for signal in clipped:
            limit, scale, steps = (float(signal.detail.get(key, 0.0)) for key in ("limit", "scale", "steps"))
            yield self.finding(
                f"gradients are clipped to a norm of {limit:.3g} while they are still scaled by {scale:.4g}: in all of {steps:.0f} recorded steps {signal.value:.2g} is left of "
                "them, whatever they were. Call scaler.unscale_(optimizer) in front of the clipping.",
                severity="warning",
                limit=limit,
                signal=signal,
            )
        beyond = [s for s in signals.find(OPTIMIZER_MOMENTUM) if not s.value < self.most]
        beyond += [s for s in signals.find(OPTIMIZER_NEGATIVE_RATE) if not 0 <= s.value < math.inf]
        beyond += [s for s in signals.find(OPTIMIZER_DECAY) if not s.value < self.decay]
        # Of an optimizer at hand, its state tells what its settings do.
        for s in {(s.name, repr(s.value), s.detail.get("group")): s for s in beyond}.values():
            group = s.detail.get("group")
            yield self.beyond(s.step, Setting(s.name, s.value, group if isinstance(group, int) else 0))
        if (beyond or scaled or clipped) and not signals.find(OPTIMIZER_LR_JUMP):
            return
        jump = largest(signals.need(OPTIMIZER_LR_JUMP))
        if not jump.value >= self.jump:
            return
        rates = [jump.detail.get(key) for key in ("before", "after")]
        known = all(isinstance(rate, (int, float)) for rate in rates)
        between = f" from {rates[0]:.3g} to {rates[1]:.3g}" if known else ""
        yield self.finding(
            f"at step {jump.step} the learning rate jumps{between}, {jump.value:.3g} times that of the step before and beyond every rate "
            "of the run. Correct the schedule, or warm up to the higher rate.",
            limit=self.jump,
            signal=jump,
        )


def _halving(share: float) -> str:
    steps = math.ceil(math.log(0.5) / math.log1p(-share)) if 0 < share < 1 else 1
    return counted(steps, "step")
