"""Fixes that change how a model is trained and leave the model alone: their numbers are in `Fix.training_options`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from gnnstab.fixes._loop import eps_broke
from gnnstab.fixes.base import NOTHING_MEASURED, POSITIVE, Fix, Limits, positive
from gnnstab.fixes.printing import on_one_line
from gnnstab.records import LayerFacts, Signals
from gnnstab.records.rises import harms
from gnnstab.records.vocabulary import (
    GRADIENT_NORM,
    GRADIENT_SPIKE,
    LOSS,
    LOSS_FIRST_RISE,
    OPTIMIZER_BELOW_EPS_SHARE,
    OPTIMIZER_GROUP_RATE,
    OPTIMIZER_LOSS_RISE,
    OPTIMIZER_LR_TO_RMS,
    OPTIMIZER_MADE,
    OPTIMIZER_UNDONE,
)

LOWER = 1 / 3
"""The advice where no lower rate was tried: what makes a difference that can be measured. 5e-4 to 3.5e-4 cures nothing."""


LOST = 4.0
"""Loss over the first of the run from which on a step tells of what is lost; as for what is seen at the end of a run (`gnnstab.rules.queries.ruined`)."""

FEWEST = 10
"""Gradient norms that a limit is taken from at least: one step in ten is to be shortened."""


class LowerLearningRate(Fix):
    """Lowers the learning rate to the first third, ninth, … at which real steps of the optimizer on a copy are calm and bring the loss down.

    Where none was tried, the rate is divided by three. Too large a rate has made the weights grow: the training has to start
    again.
    Options: ``lr`` (the new rate), or ``factor`` and ``current`` (the present rate, 1e-3).
    """

    name = "lower-lr"
    title = "lower learning rate"
    options = ("lr", "factor", "current")
    limits: ClassVar = dict.fromkeys(options, POSITIVE)
    causes = ("learning-rate", "dead-units")
    unless = "GS608"
    signal = OPTIMIZER_LR_TO_RMS
    keeps_function = True
    shows_in_training = True
    costs_no_time = True
    cost = "slower training"

    def _lines(self, layers: Sequence[LayerFacts], signals: Signals, options: dict[str, Any]) -> str:
        rate, calm, apart = _tried(signals)
        several = [] if options else [one for one in signals.context.get("several_optimizers", []) if one["names"]]
        if several:
            return _of_several(max(several, key=lambda one: one["over"]))
        group = None if options else _group(signals)
        if group is not None:
            own = on_one_line(", ".join(str(name) for name in group.get("names", ())[:3]))
            return f'optimizer.param_groups[{group.get("group")!r}]["lr"] = {float(group.get("lower", 0)):.3g}  # {own}'
        if not options and any(told.get("scheduled") for told in _hindering(signals)) and rate and calm:
            return f"factor = {calm / rate:.2g}  # on every rate of the schedule; or warm up to {rate:.3g} over some hundred steps"
        given = {"lr", "current"} & options.keys()
        chosen = self.training_options(signals=signals, **options)["lr"] if given else calm
        if not given and "factor" in options and options["factor"] != LOWER:
            return in_groups("lr", f"*= {options['factor']:.2g}")
        if chosen and (given or "factor" not in options):
            before = f"  # in place of {rate:.3g}" if rate else ""
            return in_groups("lr", f"*= {chosen / rate:.2g}" if apart and rate else f"= {chosen:.3g}{before}")
        lower, *further = [f"= {rate * LOWER**n:.3g}" if rate else f"/= {3**n}" for n in (1, 2, 3)]
        return f"{in_groups('lr', lower)}\n# else {', '.join(further)}, …: the first at which the loss does not rise"

    def training_options(self, **options: Any) -> Mapping[str, Any]:
        """``lr``."""
        if "lr" in options:
            return {"lr": positive(options, "lr", 1.0)}
        current = positive(options, "current", 1e-3)
        rate, calm, _ = _tried(options.get("signals") or NOTHING_MEASURED)
        factor = calm / rate if calm is not None and rate else LOWER
        return {"lr": current * positive(options, "factor", factor)}


def _of_several(told: Mapping[str, Any]) -> str:
    """A third of the rate of the optimizer that lies furthest above a usual one, by what it moves."""
    own = on_one_line(", ".join(told["names"][:3])) + (", …" if len(told["names"]) > 3 else "")
    lower, *further = [f"{told['rate'] * LOWER**n:.3g}" for n in (1, 2, 3)]
    return (
        f"for group in optimizer.param_groups:  # of the {on_one_line(told['class'])} of {own}\n"
        f'    group["lr"] = {lower}  # in place of {told["rate"]:.3g}\n'
        f"# else {', '.join(further)}, …: the first at which the loss does not rise"
    )


def _group(signals: Signals) -> Mapping[str, Any] | None:
    """The parameter group whose rate alone makes the loss rise, or keeps the model from learning."""
    found = (s.detail for s in signals.find(OPTIMIZER_GROUP_RATE) if s.detail.get("calms") or harms(s.detail))
    return next(found, None)


def _hindering(signals: Signals) -> list[Mapping[str, Any]]:
    """What steps on a copy at a lower rate have shown, where the one in use keeps the model from learning."""
    found = (s.detail for s in signals.find(OPTIMIZER_UNDONE))
    return [told for told in found if told.get("cause") == "learning-rate" and isinstance(told.get("lower"), float)]


def _tried(signals: Signals) -> tuple[float | None, float | None, bool]:
    """The optimizer's rate where the loss has risen, one at which steps went well, and whether the groups have rates of their own."""
    rate, calm, apart = None, None, False
    for rise in [*signals.find(OPTIMIZER_LOSS_RISE), *signals.find(LOSS_FIRST_RISE)][:1]:
        calm, rate = (n if isinstance(n, float) and n > 0 else None for n in map(rise.detail.get, ("calm_lr", "lr")))
        apart = rise.detail.get("apart") is True
    for told in (*_hindering(signals), *(made.detail for made in signals.find(OPTIMIZER_MADE))):
        rate, calm = (n if isinstance(n := told.get(key), float) and n > 0 else None for key in ("rate", "lower"))
    return rate, calm if rate and calm and calm < rate else None, apart


def in_groups(setting: str, change: str) -> str:
    """The lines that change one setting of an optimizer, of whatever class, and leave all others as they are."""
    return f'for group in optimizer.param_groups:  # right after it is made\n    group["{setting}"] {change}'


class GradientClipping(Fix):
    """Clips the gradient's norm at the 90th percentile of its history, so that one step in ten is shortened.

    Options: ``norm`` (the limit; measured from the run's gradient norms where they are known), ``percentile`` (90).
    """

    name = "gradient-clipping"
    title = "gradient clipping at the measured percentile"
    options = ("norm", "percentile")
    limits: ClassVar = {"norm": POSITIVE, "percentile": Limits(0.0, 100.0, high_in=True)}
    causes = ("learning-rate",)
    unless = "GS608"
    signal = GRADIENT_SPIKE
    keeps_function = True
    shows_in_training = True
    costs_no_time = True
    cost = "one norm over all gradients per step"

    def _lines(self, layers: Sequence[LayerFacts], signals: Signals, options: dict[str, Any]) -> str:
        norm = options.get("norm") or _measured_norm(signals, float(options.get("percentile", 90.0)))
        limit, said = (f"{norm:.3g}", "") if norm else ("max_norm", "  # the 90th percentile of the norms you log")
        return f"torch.nn.utils.clip_grad_norm_(model.parameters(), {limit}){said}"

    def helps(self, signals: Signals, **options: Any) -> bool:
        """False where a run was lost before it had norms that a limit could be taken from."""
        return not signals.over_steps(GRADIENT_NORM) or _measured_norm(signals, 90.0) is not None

    def training_options(self, **options: Any) -> Mapping[str, Any]:
        """``clip``: the limit of the norm, or ``clip_percentile`` when it is to be measured in training."""
        if options.get("norm"):
            return {"clip": positive(options, "norm", 1.0)}
        norm = _measured_norm(options.get("signals") or NOTHING_MEASURED, float(options.get("percentile", 90.0)))
        return {"clip": norm} if norm else {"clip_percentile": positive(options, "percentile", 90.0)}


def _measured_norm(signals: Signals, percentile: float) -> float | None:
    """A percentile of the run's gradient norms where it was not lost; None where fewer than `FEWEST` of those were recorded."""
    sound: list[float] = []
    losses = next((s for s in signals.over_steps(LOSS) if s.layer is None and s.head is None), None)
    for series in signals.over_steps(GRADIENT_NORM):
        kept = np.isfinite(series.values)
        if losses is not None and len(losses.values):
            first = losses.values[0]
            lost = ~np.isfinite(losses.values) | ((losses.values > LOST * first) & (first > 0))
            kept &= ~np.isin(series.steps, losses.steps[lost])
        sound += series.values[kept].tolist()
    return float(np.percentile(sound, percentile)) if len(sound) >= FEWEST else None


class AdamEps(Fix):
    """A smaller eps, so that small gradients are not damped away. Options: ``eps`` (1e-8)."""

    name = "adam-eps"
    title = "smaller Adam eps"
    options = ("eps",)
    limits: ClassVar = {"eps": POSITIVE}
    causes = ("adam-epsilon",)
    signal = OPTIMIZER_BELOW_EPS_SHARE
    keeps_function = True
    shows_in_training = True
    costs_no_time = True
    cost = "none; larger steps where gradients are tiny"

    def helps(self, signals: Signals, **options: Any) -> bool:
        """False where the format of the weights holds the usual eps as 0."""
        return not eps_broke(signals)

    def _lines(self, layers: Sequence[LayerFacts], signals: Signals, options: dict[str, Any]) -> str:
        return in_groups("eps", f"= {positive(options, 'eps', 1e-8):g}")

    def training_options(self, **options: Any) -> Mapping[str, Any]:
        """``eps``."""
        return {"eps": positive(options, "eps", 1e-8)}
