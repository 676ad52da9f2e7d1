"""What is said of a rate: how far the loss rose, what the rate has made of the weights, and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gnnstab.records import SIGNALS, Signal, Signals
from gnnstab.records.vocabulary import LOSS_FIRST_RISE, OPTIMIZER_LOSS_RISE
from gnnstab.rules.queries import names, times


def group_words(signal: Signal) -> str:
    """The parameter group whose rate is far above that of others."""
    own = names(str(name) for name in signal.detail.get("names", ()))
    return f"the rate of parameter group {signal.detail.get('group')} ({own}) is {float(signal.detail.get('lr', math.nan)):.3g};"


def rise_words(rise: Signal, moves: Sequence[float], signals: Signals) -> str:
    """How far the loss rose, what one update moves, and what to do."""
    detail = rise.detail
    first, lr = detail.get("first"), detail.get("lr")
    rate = f" (lr {lr:.3g})" if isinstance(lr, (int, float)) else ""
    began, to = "", f" {times(rise.value)} times" if math.isfinite(rise.value) else " beyond every number"
    if isinstance(first, (int, float)):
        began = f" from {first:.3g}"
        to = f" to {first * rise.value:.3g}," + to + " as much" if math.isfinite(rise.value) else to
    where = "of this run" if rise.name == LOSS_FIRST_RISE else "taken on a copy"
    who = detail.get("optimizer", "the optimizer")
    if several := signals.context.get("several_optimizers"):
        each = [f"{one.get('class')} at {one.get('rate', math.nan):.3g}" for one in several[:4]]
        who, rate = "the optimizers", f" ({', '.join(each)})"
    moved = f"; one update moves the output by {times(max(moves))} times its spread" if moves else ""
    return f"in the first steps of {who}{rate} {where} the loss rises{began}{to}{moved}. {_advice(detail, calm_rate(signals))}"


def made_words(made: Signal) -> str:
    """What steps from the beginning of a run bring about at its rate, and do not at a lower one."""
    told = made.detail
    rate, low, best, undone = (float(told.get(key, math.nan)) for key in ("rate", "lower", "best", "undone"))
    states = [one for one in told.get("states", ()) if isinstance(one, dict)]
    shown = "; ".join(map(_state_words, states[:2])) + (f"; and {len(states) - 2} more" if len(states) > 2 else "")
    return (
        f"the run's own rate has made its weights so: {told.get('steps')} steps of {told.get('optimizer', 'the optimizer')} on a copy, from the "
        f"weights that it began with, at {rate:.3g} and at {low:.3g}, take {shown}, and the loss of one batch to {best:.3g} and to {undone:.3g}. "
        f"Lower the learning rate to {low:.3g}, and train anew: changes of the weights treat what it has done."
    )


def _state_words(state: Mapping[str, Any]) -> str:
    """``attention entropy of conv1 from 0.93 to 0.02 and to 0.88``."""
    name = str(state.get("signal"))
    kind = SIGNALS.get(name)
    what = name if kind is None else kind.words or f"share of {kind.meaning}"
    began, made, lower = (float(state.get(key, math.nan)) for key in ("began", "made", "lower"))
    return f"{what} of {state.get('layer')} from {began:.2g} to {made:.2g} and to {lower:.2g}"


def calm_rate(signals: Signals) -> float | None:
    """The rate at which trial steps went best, where one was found in this run."""
    found = (s.detail.get("calm_lr") for s in signals.find(OPTIMIZER_LOSS_RISE))
    return next((calm for calm in found if isinstance(calm, (int, float)) and calm > 0), None)


def lower(calm: float | None, more: str = "", of: str = "") -> str:
    """What to do about a rate, which ``of`` describes: the one that steps have shown, where any have, since a third of a far too high one is too high."""
    how = "by 3" if calm is None else f"to {calm:.3g}, at which trial steps went best"
    return f"{'Divide' if calm is None else 'Lower'} the learning rate{of} {how}{more}."


def _advice(detail: Mapping[str, Any], measured: float | None) -> str:
    calm = detail.get("calm_lr")
    if not isinstance(calm, (int, float)):
        return lower(measured, " and warm up" if measured is None else "")
    if math.isnan(calm):
        return "No rate down to a 6561st of it makes these steps calm: something else makes the loss so steep."
    if isinstance(detail.get("reached"), float):
        return f"At lr={calm:.3g} the same steps are calm, and {detail.get('taken')} of them bring the loss to {detail['reached']:.3g}, lower than at a third of that rate; a longer run may need less."
    return f"At lr={calm:.3g} the same steps are calm, the largest rate tried that is so; a longer run may need less."
