"""What keeps a model from learning: the same steps on copies, as they are, at other rates, and with each suspect undone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gnnstab.errors import UsageError, let_through, ours
from gnnstab.probe.optimizer._alike_kinds import alike_kinds
from gnnstab.probe.optimizer._clamped import clamps
from gnnstab.probe.optimizer._gates import shut_gates
from gnnstab.probe.optimizer._large_inputs import large_inputs
from gnnstab.probe.optimizer._outsized import outsized
from gnnstab.probe.optimizer._plain_tensors import plain
from gnnstab.probe.optimizer._settings import has_decay, without_decay
from gnnstab.probe.optimizer._slow import far_above_usual
from gnnstab.probe.optimizer._stacks import stacks
from gnnstab.probe.optimizer._suspects import Suspect, suspects, unchanged
from gnnstab.probe.optimizer._zeros import of_zeros
from gnnstab.probe.optimizer.softening import MORE_STEPS as MORE_STEPS
from gnnstab.probe.optimizer.softening import STEPS as STEPS
from gnnstab.probe.replaying.replica import forked_rng
from gnnstab.records import Signal
from gnnstab.records.vocabulary import OPTIMIZER_INPUT_SHARE, OPTIMIZER_UNDONE

if TYPE_CHECKING:
    from gnnstab.probe.optimizer.optimizer_steps import Bench

Undone = tuple[float, Suspect, Sequence[float]]
"""Progress without a suspect, the suspect, and the losses."""

LEARNS = 1.0
"""Fall of the loss, as ln(first / smallest), from which on no deep stack keeps a model from learning."""

LEARNS_WELL = 2.0
"""Fall from which on nothing does."""

RATES = (0.1, 1 / 3, 3.0, 10.0)
"""Factors on the rate that are tried before any suspect: what another rate brings about as well is no fault of the model."""

AROUND = (1.0, 3.0, 1 / 3)
"""Those with which what needs `MORE_STEPS` to show is compared."""

LOWER = 2
"""The first of `RATES`, which are lower, are tried where nothing is suspected, too."""

PACE = LEARNS / 4
"""Fall of the mean ln(loss) from the third to the last quarter of `MORE_STEPS` from which on a model is on its way: as many steps again bring it down by a factor e."""

FAR_OFF = math.exp(LEARNS_WELL)
"""Times the loss of an output of zeros, from which on one that falls at `PACE` is not on its way: it has learned nothing by `MORE_STEPS` twice over."""

FASTER = 4.0
"""Times its own progress that a copy with standardised inputs may reach until its trial ends: three quarters are then the scale's share."""

MARGIN = 1.0
"""Further fall of ln(loss), beyond that at any rate, from which on what was undone was in the way: a factor of e."""

HEARD = 10
"""Steps at a lower rate after which they may be given up: momentum of 0.9 has brought updates two thirds of the way to their size by then."""

CALM = 1.01
"""Times the lowest loss, or the first, up to which a loss has not risen: a rate that is still too high may bring one down later."""

HASTE = 4.0
"""Times their latest pace that steps at a lower rate are trusted with until their end; momentum of 0.95 may still make it two and a half times as fast."""


def learning_signals(bench: Bench, *, lost: bool = False) -> Iterator[Signal]:
    """Share of the progress, in ln(loss), that what stands in the way of a model takes from the first steps; 0, with ``learns``, where a stack learns.

    ``lost``: a run of `MORE_STEPS` has not come near the loss of an output of zeros, whatever as many steps on one batch may do.

    Raises:
        UsageError: As `Bench.trial`.
    """
    given: list[tuple[Any, Tensor]] = []
    deep = seen(bench, stacks, given=given)
    zeros = of_zeros(bench, given)
    if "as_is" in vars(bench):
        as_is = bench.as_is
    else:
        as_is = bench.trial(STEPS, until=lambda losses: progress(min(losses[0], zeros), losses) >= LEARNS_WELL).losses
    # To come down from a far-off first output is nothing learned.
    first = min(as_is[0], zeros)
    own = progress(first, as_is)
    if math.isnan(own):
        return
    detail: dict[str, Any] = {"first": as_is[0], "best": min(as_is), "steps": len(as_is) - 1}
    if deep and own >= LEARNS:
        names = [name for stack in deep for name in stack.names]
        detail, deep = {"learns": True, "names": names[:40], **detail}, []
    hindered = None
    if own < LEARNS_WELL:
        others = [
            *seen(bench, suspects, 1),
            *seen(bench, alike_kinds),
            *seen(bench, shut_gates),
            *seen(bench, outsized),
        ]
        cut = seen(bench, clamps)
        least = max(0.0, own) + MARGIN
        freed, lifted = (list(_undone(bench, found, first, least)) for found in (others, cut))
        if deep or freed or lifted:
            rated = at_any_rate(bench, first, max(0.0, own), RATES)
        else:
            rated = _at_lower_rates(bench, first, max(0.0, own), RATES if others or cut else ())
        names = [name for stack in deep for name in stack.names][:40]
        if deep and rated[0] >= LEARNS and rated[1] > 1:
            # It is slow at its rate, and nothing in it keeps it from learning; one that needs a lower rate is hindered at its own.
            detail, deep = {"learns": True, "names": names, **detail, "best": min(rated[2]), "factor": rated[1]}, []
        elif rated[0] >= LEARNS_WELL and rated[1] < 1 and far_above_usual(bench):
            deep = []  # The stack learns at a usual rate: what is out of the ordinary is in the way, and not what is merely built so.
        hindered = _worst(bench, deep, freed, lifted, as_is, first, rated)
        if hindered is None and own < LEARNS:
            hindered = _in_time(bench, as_is, first)
        # Asked only of a model that would be accused: to learn slowly is no fault of what makes it faster. A rate is compared with another rate.
        compared = hindered and hindered.detail["cause"] == "learning-rate" and not hindered.detail["setting"]
        if hindered and not compared and not lost:
            # What undoing it takes away with the first step has to be made good for before anything is learned.
            made_far_off = hindered.detail["began"] < FAR_OFF * first < as_is[0]
            if on_its_way(bench, first, first if made_far_off else FAR_OFF * first):
                hindered, detail = None, {"learns": True, "names": names, **detail}
    yield hindered or Signal(OPTIMIZER_UNDONE, 0.0, source="steps", detail=detail)


def open_to_more(signals: Sequence[Signal]) -> bool:
    """True where `learning_signals` found nothing in the way of a model that does not learn well."""
    said = [s.detail for s in signals if s.name == OPTIMIZER_UNDONE]
    return any("cause" not in d and float(d["best"]) > math.exp(-LEARNS_WELL) * float(d["first"]) for d in said)


def input_signals(bench: Bench, chosen: Mapping[str, bool], objective: str) -> Iterator[Signal]:
    """Share of the progress, in ln(loss), that the scale of inputs takes from the first steps; nothing where none of the ``chosen`` is large.

    Args:
        bench: Model, optimizer, batches and loss.
        chosen: Name of a tensor of the batch → True where a weight multiplies its whole numbers as they are.
        objective: What the loss is called in a report.

    Raises:
        UsageError: As `Bench.trial`.
    """
    found = large_inputs(chosen, bench.calls, bench.model)
    if found is None:
        return
    suspect, marks = found
    as_is = bench.as_is
    # To come down from a far-off first output, which is what large inputs give, is nothing learned.
    zeros = of_zeros(bench)
    first = min(as_is[0], zeros)
    learns = progress(first, as_is) >= LEARNS
    if not learns:
        as_is = bench.trial(MORE_STEPS, until=lambda losses: progress(first, losses) >= LEARNS).losses
    own = max(0.0, progress(first, as_is))
    enough, steps = max(LEARNS, FASTER * own), max(STEPS, len(as_is) - 1)
    undone = bench.trial(steps, edit=suspect.undo, until=lambda losses: progress(first, losses) >= enough).losses
    without = progress(first, undone)
    if math.isnan(own) or math.isnan(without):
        return
    detail = {
        "names": list(suspect.names[:40]), "marks": marks, "objective": objective, "learns": learns,
        "optimizer": type(bench.optimizer).__name__, "first": as_is[0], "best": min(as_is), "undone": min(undone),
        "zeros": zeros if zeros < as_is[0] else None, "steps": len(undone) - 1,
    }  # fmt: skip
    share = 1 - own / without if without >= LEARNS else 0.0
    yield Signal(OPTIMIZER_INPUT_SHARE, max(0.0, share), source="steps", detail=detail)


def seen(
    bench: Bench,
    look: Callable[[nn.Module, Callable[[], Any]], Any],
    part: int = 0,
    given: list[tuple[Any, Tensor]] | None = None,
) -> list[Suspect]:
    """What a look at one forward of a copy finds, which is given its output (``part`` 0) or, after a backward, its loss (1).

    Output and loss are added to ``given``.

    Raises:
        UsageError: The forward, the loss or the backward fail on the copy.
    """
    model = bench.twin()

    def ran() -> Any:
        try:
            result = bench.forward(model, 0)
            if given is not None:
                given.append(result)
            if part:
                result[1].backward()  # type: ignore[no-untyped-call]
            return result[part]
        except Exception as error:
            let_through(error)
            if ours(error):  # A hook of the look itself.
                raise
            raise UsageError(f"the forward failed on a copy: {type(error).__name__}: {error}") from error

    with forked_rng(), torch.enable_grad():
        return list(look(model, ran))


def _worst(
    bench: Bench,
    deep: Sequence[Suspect],
    freed: Sequence[Undone],
    lifted: Sequence[Undone],
    as_is: Sequence[float],
    first: float,
    rated: tuple[float, float, Sequence[float]],
) -> Signal | None:
    """What the same steps get furthest without: a deep stack, another suspect that no rate makes up for, clamps, or a rate that is too high.

    ``freed`` and ``lifted`` are the other suspects and the clamps without which they get further by `MARGIN`, ``rated`` is as of `at_any_rate`.
    """
    own = max(0.0, progress(first, as_is))
    found = [(*one, own) for one in _undone(bench, deep, first, LEARNS)]
    best, factor, at_best = rated
    # A clamp that is lifted changes nothing but what it cuts; no rate takes that away from it.
    found += [(*one, own) for one in lifted if one[0] >= best]
    if best < LEARNS_WELL + MARGIN:
        found += [(*one, best) for one in freed if one[0] >= best + MARGIN]
    # From weights that a run has come to, a lower rate goes further in any case.
    if not found and own < LEARNS and factor < 1 and best >= own + MARGIN and not bench.optimizer.state:
        found = [(best, _rate(bench, factor), at_best, own)]
    decays = own < LEARNS and has_decay(bench.optimizer)
    free = bench.trial(STEPS, setting=without_decay).losses if decays else ()
    if decays and progress(first, free) >= max(LEARNS, own + MARGIN):
        found.append((progress(first, free), _decay(bench), free, own))
    if not found:
        return None
    reached, suspect, losses, without = max(found, key=lambda one: one[0])
    rates = first * math.exp(-best) if any(suspect is one[1] for one in freed) and best > 0 else None
    more = _lowered(bench, factor) if suspect.cause == "learning-rate" and not suspect.setting else {}
    return _hindered(suspect, 1 - without / reached, as_is, losses, first, at_any_rate=rates, **more)


def _hindered(
    suspect: Suspect, share: float, as_is: Sequence[float], losses: Sequence[float], first: float, **more: Any
) -> Signal:
    """``share`` of the progress, out of what it makes in all, that undoing the suspect makes alone."""
    detail = {
        "cause": suspect.cause, "names": list(suspect.names[:40]), "count": len(suspect.names), "words": suspect.words,
        "suspect": suspect.suspect, "setting": suspect.setting, "first": as_is[0], "best": min(as_is), "zeros": first if first < as_is[0] else None,
        "began": losses[0], "undone": min(losses), "steps": len(losses) - 1, **more,
    }  # fmt: skip
    return Signal(OPTIMIZER_UNDONE, share, source="steps", detail=detail)


def _in_time(bench: Bench, as_is: Sequence[float], first: float) -> Signal | None:
    """What is no parameter and would be learned if it were one, or a gate that is shut: it takes `MORE_STEPS` to show, at the rate as it is and at those around it."""
    for suspect in (*seen(bench, plain), *seen(bench, shut_gates)):
        rates = [bench.trial(MORE_STEPS, factor=factor).losses for factor in AROUND]
        own = max(0.0, *(progress(first, losses) for losses in rates))
        for _, _, losses in _undone(bench, [suspect], first, max(LEARNS, own + MARGIN), MORE_STEPS):
            share = 1 - own / progress(first, losses)
            reached = first * math.exp(-own)
            return _hindered(suspect, share, as_is, losses, first, at_any_rate=reached, rates="one, three and a third")
    return None


def on_its_way(bench: Bench, first: float, below: float = math.inf) -> bool:
    """True where more of the same steps do learn, or where their losses fall on and on, and one of them ``below``."""
    losses = bench.trial(MORE_STEPS, until=lambda seen: progress(first, seen) >= LEARNS_WELL).losses
    if progress(first, losses) >= LEARNS_WELL:
        return True
    if min(losses) >= below or not all(0 < loss < math.inf for loss in losses):
        return False
    quarter = MORE_STEPS // 4
    third, last = (sum(map(math.log, part)) / quarter for part in (losses[-2 * quarter : -quarter], losses[-quarter:]))
    return third - last >= PACE


def _at_lower_rates(
    bench: Bench, first: float, own: float, factors: Sequence[float]
) -> tuple[float, float, Sequence[float]]:
    """As `at_any_rate`, of a model in which nothing else is in the way, where less than `MARGIN` more than its ``own`` progress says nothing.

    Where a lower rate gets that far, all ``factors`` are tried.
    """
    if own >= LEARNS or bench.optimizer.state:
        return own, 1.0, ()
    lower = at_any_rate(bench, first, own, RATES[:LOWER], own + MARGIN)
    return at_any_rate(bench, first, own, factors) if factors and lower[0] >= own + MARGIN else lower


def _out_of_reach(first: float, least: float, losses: Sequence[float]) -> bool:
    """True where losses that fall without a rise do so at a pace by `HASTE` times which they miss ``least`` progress by the end of `STEPS`."""
    taken = len(losses) - 1
    lately = losses[-1 - HEARD // 2 :]
    if taken < HEARD or not min(losses) > 0 or losses[-1] > CALM * min(losses) or max(losses) > CALM * losses[0]:
        return False
    pace = max(0.0, math.log(lately[0] / lately[-1])) / (len(lately) - 1)
    return progress(first, losses) + HASTE * pace * (STEPS - taken) < least


def at_any_rate(
    bench: Bench, first: float, own: float, factors: Sequence[float], least: float = -math.inf
) -> tuple[float, float, Sequence[float]]:
    """The most progress at the rate as it is and at those around it, with the factor and the losses; of one that is enough the others are not tried.

    A trial for which ``least`` is out of reach is not taken to its end.
    """
    best: tuple[float, float, Sequence[float]] = (own, 1.0, ())
    # More than that, and more than half of it not the own one, shows as much as any could.
    enough = max(LEARNS_WELL + MARGIN, 2 * own + MARGIN)
    for factor in factors:
        losses = bench.trial(
            STEPS,
            factor=factor,
            until=lambda seen: progress(first, seen) >= enough or _out_of_reach(first, least, seen),
        ).losses
        best = max(best, (progress(first, losses), factor, losses), key=lambda one: one[0])
        if best[0] >= enough:
            break
    return best


def _rate(bench: Bench, factor: float) -> Suspect:
    """A rate at which the model learns less than at ``factor`` times it."""
    rate, rates = bench.largest_rate, bench.schedule
    words, suspect = f"at a rate of {factor * rate:.3g}", f"the learning rate is {rate:.3g}"
    if len(rates) > 1:
        at = next(step for step, row in enumerate(rates) if max(row) == rate)
        words = f"at rates of up to {factor * rate:.3g}"
        suspect = f"the learning rate {f'comes up to {rate:.3g} in {at} steps' if at else f'begins at {rate:.3g}'}"
    return Suspect("learning-rate", (), words, suspect, unchanged)


def _lowered(bench: Bench, factor: float) -> dict[str, Any]:
    """The rate as it is and the lower one, and whether they are the largest of a schedule."""
    rate = bench.largest_rate
    return {"rate": rate, "lower": factor * rate, "scheduled": len(bench.schedule) > 1}


def _decay(bench: Bench) -> Suspect:
    """A weight decay without which the model learns."""
    groups = bench.optimizer.param_groups
    decay, rate = max((float(group.get("weight_decay", 0.0)), float(group["lr"])) for group in groups)
    what = f"the weight decay is {decay:.3g} at a learning rate of {rate:.3g}"
    return Suspect("learning-rate", (), "without it", what, unchanged, setting="weight_decay")


def _undone(
    bench: Bench, found: Sequence[Suspect], first: float, enough: float, steps: int = STEPS
) -> Iterator[Undone]:
    """Progress without each suspect, with the losses, where it is ``enough``."""
    for suspect in found:
        try:
            with suspect.mode:
                losses = bench.trial(steps, edit=suspect.undo).losses
        except UsageError:  # The change does not fit the model: it is another kind than it looks like.
            continue
        reached = progress(first, losses)
        if reached >= enough:
            yield reached, suspect, losses


def progress(first: float, losses: Sequence[float]) -> float:
    """ln(first / smallest); NaN without a positive loss."""
    best = min(losses)
    return math.log(first / best) if 0 < best < math.inf and 0 < first < math.inf else math.nan
