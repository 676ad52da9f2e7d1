"""Steps and parameters of a run → signals: loss, gradient norm and its spikes, relative updates, silent parameters."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gnnstab.records import PARAMETER_SITES, Measure, SeriesKey, Signal
from gnnstab.records.rises import LATELY, OF, falling, lasting_level, rise_of_run, spike_floor
from gnnstab.records.vocabulary import (
    LOSS_FIRST_RISE,
    LOSS_GROWTH,
    LOSS_VALIDATION,
    OPTIMIZER_CLIPPED_SCALED,
    OPTIMIZER_LR_JUMP,
    OPTIMIZER_OUTPUT_MOVE,
    OPTIMIZER_OVERSHOOT,
)
from gnnstab.signals._measures import parsed
from gnnstab.signals._window import Floats, Integers, latest, median
from gnnstab.signals.fitting import LASTS, shared_growth

if TYPE_CHECKING:
    from numpy.typing import NDArray

SPIKE_WINDOW = 50
"""Steps of the running median."""

GROWTH_WINDOW = 32
"""Steps in which a growth is looked for, as the live rules keep them."""

SPIKE_WARM_UP = 10
"""Steps before a spike can be told: the first gradients of a network, above all of a value network, are large by nature."""

SPIKE = 10.0
"""Multiple of the running median that counts as a spike in the figures that go with the signal."""

BESIDE = 5
"""Steps just before a spike, whose median its norm must exceed."""

JUMP = 3.0
"""Multiple of that median that tells a spike from a rise by less than 44 % per step."""

RECOVERY = 10
"""Steps within which the norm must come back to three times the median for a spike to have passed."""

VALIDATIONS = 3
"""Latest validation losses whose median gap counts."""

BEFORE = 20
"""Steps before a validation whose median training loss it is compared with."""

MOST_NAMES = 500
"""Silent parameters that are named."""

WARMS = 10.0
"""Times its first rate that a run ends with at least, where it has ended in its warm-up."""

WARM_START = 5
"""Steps in which a warm-up from next to nothing may multiply the rate."""

NEIGHBOURS = 2
"""Steps between two recorded ones that are still neighbours."""

CLIPPED = 8
"""Recorded steps of one and the same scaled norm from which on it is the limit of a clipping."""

SAME = 1e-3
"""Relative difference of norms up to which they are one limit: no gradients of different steps are so alike."""

SCALE = 4096.0
"""Scale from which on gradients that were clipped as they were scaled are told from those that were clipped rightly, whose limit is then `LIMIT` / `SCALE` at most."""

LIMIT = 10.0
"""Largest norm to which gradients are usually clipped."""

FIRST = 10
"""Steps after step 0 in which a rate that is too high raises the loss; batches differ, so that some more than on one batch."""

EARLY = 3
"""First measurements of the update that show the step's size before the weights have grown."""


LAST_LOSSES = 16
"""Losses at the end of a run whose lower quartile it has not come below: those of single graphs differ tenfold."""


def step_signals(steps: NDArray[np.void]) -> list[Signal]:
    """Loss and gradient norm of a run, ``steps`` of `gnnstab.trace._arrays.STEP_DTYPE`; skipped steps are left out."""
    rows = steps[~steps["skipped"]]
    return [*_loss(rows), *_growth(rows), *_norm(rows), *_jump(rows), *_clipped_scaled(rows)]


def _growth(rows: NDArray[np.void]) -> list[Signal]:
    """The pace at the end of a run at which loss and gradient norm grow together and go on; nothing for a run that is too short."""
    known = rows[np.isfinite(rows["loss"]) & np.isfinite(rows["grad_norm"])]
    if len(known) < LASTS:
        return []
    last = known[-GROWTH_WINDOW:]
    steps, loss, norm = (last[name].astype(np.float64).tolist() for name in ("step", "loss", "grad_norm"))
    start = [float(median(known[name][:SPIKE_WARM_UP].astype(np.float64))) for name in ("loss", "grad_norm")]
    pace, own = shared_growth((steps, loss), (steps, norm), (start[0], start[1]))
    return [Signal(LOSS_GROWTH, pace, None, None, int(steps[-1]), "training", {"loss": loss[-1], "gradient": own})]


def _jump(rows: NDArray[np.void]) -> list[Signal]:
    """The largest factor of the rate from one recorded step to the next that leads beyond every rate before, 1 for none."""
    told = rows[np.isfinite(rows["lr"]) & (rows["lr"] >= 0)]
    known = told[told["lr"] > 0]
    if len(known) < 2:
        return []
    rates, steps = known["lr"].astype(np.float64), known["step"]
    # The first is what the optimizer was made with, where its own step sets the rate.
    rising = bool(rates[-1] >= WARMS * rates[1] and rates[-1] >= rates[1:].max())
    own = slice(int(rising and rates[0] > rates[-1]), None)
    factors = np.where(rates[1:] > np.maximum.accumulate(rates)[:-1], rates[1:] / rates[:-1], 1.0)
    # Between steps far apart a schedule may have gone up bit by bit.
    factors[(steps[1:] - steps[:-1] > NEIGHBOURS) | (steps[1:] < WARM_START)] = 1.0
    worst = int(np.argmax(factors))
    detail = {
        "before": float(rates[worst]),
        "after": float(rates[worst + 1]),
        "constant": bool((told["lr"] == rates[0]).all()),
        "largest": float(rates[own].max()),
        "over_first": float(rates.mean() / rates[0]),
        "rising": rising,
        "spent": _spent(told["lr"][own].astype(np.float64), told["step"][own].astype(np.float64)),
    }
    return [Signal(OPTIMIZER_LR_JUMP, float(factors[worst]), None, None, int(steps[worst + 1]), "training", detail)]


def _clipped_scaled(rows: NDArray[np.void]) -> list[Signal]:
    """What a clipping of gradients that are still scaled leaves of them; nothing where their scaled norm is not the same at every step."""
    known = rows[np.isfinite(rows["grad_norm"]) & (rows["grad_norm"] > 0) & (rows["scale"] >= SCALE)]
    scaled = known["grad_norm"].astype(np.float64) * known["scale"]
    if len(known) < CLIPPED or not scaled.max() <= min(LIMIT, (1 + SAME) * scaled.min()):
        return []
    detail = {"limit": float(f"{scaled.mean():.3g}"), "scale": float(known["scale"].max()), "steps": len(known)}
    return [Signal(OPTIMIZER_CLIPPED_SCALED, float(known["grad_norm"].max()), source="training", detail=detail)]


def _spent(rates: Floats, steps: Floats) -> float:
    """Share of the run after the last step whose rate was a hundredth of the largest, or more."""
    last = steps[np.flatnonzero(rates >= rates.max() / 100)[-1]]
    return float((steps[-1] - last) / max(steps[-1] - steps[0], 1))


def _loss(rows: NDArray[np.void]) -> list[Signal]:
    known = rows[np.isfinite(rows["loss"])]
    if not len(known):
        return []
    values = known["loss"].astype(np.float64)
    smooth = running_median(values, 5)
    detail = {
        "first": float(values[0]),
        "start": float(median(values[:5])),
        # One loss may be that of a lucky batch, and so may the first.
        "best": float(smooth[min(4, len(smooth) - 1) :].min()),
        "steps": len(known),
        "ends_above": float(np.quantile(values[-LAST_LOSSES:], 0.25)),
    } | _peak(known, "loss")
    found = [Signal("loss", latest(values), None, None, int(known["step"][-1]), "training", detail)]
    return found + _first_rise(rows)


def _first_rise(rows: NDArray[np.void]) -> list[Signal]:
    """The largest finite loss of the first steps over that of step 0; nothing unless step 0 is there with a positive loss."""
    early = rows[(rows["step"] <= FIRST) & ~np.isnan(rows["loss"])]
    rise = rise_of_run(early["loss"].tolist()) if len(early) and early["step"][0] == 0 else None
    if rise is None:
        return []
    detail: dict[str, Any] = {"first": float(early["loss"][0]), "above": rise.above, "peak": rise.peak}
    after = rows["loss"][(rows["step"] > early["step"][rise.peak]) & (rows["step"] <= FIRST)]
    detail["broke"] = bool(len(after)) and not math.isfinite(after[0])
    # A warm-up has come higher by then; and the first is what the optimizer was made with, where its own step sets the rate.
    rates = early["lr"][: rise.peak + 1]
    if np.isfinite(rates).any():
        detail["lr"] = float(rates[np.isfinite(rates)].max())
    step = int(early["step"][rise.peak])
    return [Signal(LOSS_FIRST_RISE, rise.largest, None, None, step, "training", detail)]


def first_moves(measures: Sequence[Measure]) -> list[Signal]:
    """The change of the output by the first update that was measured; the median over the run says nothing of the beginning."""
    rows = [row for row in measures if row.name == OPTIMIZER_OUTPUT_MOVE]
    if not rows:
        return []
    first = min(rows, key=lambda row: row.step)
    return [Signal(OPTIMIZER_OUTPUT_MOVE, first.value, None, None, first.step, "training", {"first": True})]


def overshoot_signals(measures: Sequence[Measure], steps: NDArray[np.void]) -> list[Signal]:
    """The highest level that all but one of four measurements in a row reached, at the step of the last of them.

    Levels that do not count alone, at ``steps`` at which the loss was falling, come after all others.
    """
    rows = sorted((row for row in measures if row.name == OPTIMIZER_OVERSHOOT), key=lambda row: row.step)
    known = steps[np.isfinite(steps["loss"])]
    levels = []
    for i in range(OF - 1, len(rows)):
        until = int(np.searchsorted(known["step"], rows[i].step, side="right"))
        told = parsed(rows[i].detail, dict)
        harmful = told.get("alone") is True or not falling(known["loss"][:until][-LATELY:].tolist())
        levels.append((harmful, lasting_level([(r.step, r.value) for r in rows[i - OF + 1 : i + 1]]), i))
    if not levels:
        return []
    harmful, level, at = max(levels)
    detail = {"lasting": harmful, "adaptive": parsed(rows[at].detail, dict).get("adaptive") is True}
    return [Signal(OPTIMIZER_OVERSHOOT, level, None, None, rows[at].step, "training", detail)]


def _norm(rows: NDArray[np.void]) -> list[Signal]:
    known = rows[np.isfinite(rows["grad_norm"])]
    if not len(known):
        return []
    steps, values = known["step"].astype(np.int64), known["grad_norm"].astype(np.float64)
    rates = known["lr"].astype(np.float64)
    norm = Signal("gradient.norm", latest(values), None, None, int(steps[-1]), "training", _peak(known, "grad_norm"))
    losses = known["loss"].astype(np.float64).tolist()
    return [norm, *spikes(steps, values, warm_up(rates), losses)]


def _peak(rows: NDArray[np.void], field: str) -> dict[str, float | int]:
    """The largest and the last of finite values with their steps."""
    worst, last = rows[int(np.argmax(rows[field]))], rows[-1]
    return {
        "worst": float(worst[field]),
        "worst_step": int(worst["step"]),
        "last": float(last[field]),
        "last_step": int(last["step"]),
    }


def gap_signals(steps: NDArray[np.void], measures: Sequence[Measure]) -> list[Signal]:
    """How far the validation loss lies above the training loss, relative to it.

    Each of the last `VALIDATIONS` validation losses is compared with the median training loss of the `BEFORE` steps up to
    it. Nothing where the training loss is not positive: a share of it would mean nothing.
    """
    known = steps[np.isfinite(steps["loss"])]
    gaps: list[float] = []
    given = [row for row in measures if row.name == LOSS_VALIDATION and math.isfinite(row.value)]
    for row in given[-VALIDATIONS:]:
        before = known["loss"][known["step"] <= row.step][-BEFORE:]
        training = float(median(before)) if len(before) else math.nan
        if training > 0:
            gaps.append(row.value / training - 1)
    if not gaps:
        return []
    value = float(median(np.array(gaps)))
    return [Signal("loss.generalisation_gap", value, None, None, given[-1].step, "training")]


def warm_up(rates: Floats) -> int:
    """For how many steps from the first on the learning rate rises; 0 for one that does not, or is not known."""
    rising = np.diff(rates) > 0
    first = int(np.argmin(rising)) if not rising.all() else len(rising)
    return first + 1 if first else 0


def spikes(steps: Integers, values: Floats, warm: int = 0, losses: Sequence[float] = ()) -> list[Signal]:
    """The largest norm over the median of the steps before it, how many exceeded it tenfold, and whether it came back.

    Norms below that of the first steps count only where there are no larger ones, and are no spikes: close to convergence
    the median is tiny, and ten times as much is still less than training began with. Nor is a norm a spike that has risen
    there step by step: it must be `JUMP` times the median of the `BESIDE` before it, or follow one that was. Of the first
    ``warm`` steps, in which the rate rises, only what exceeds all norms but the last few before it tenfold. Nor one while the loss falls: where the
    variance of a likelihood is learned, gradients grow and scatter. ``steps``, ``values`` and ``losses`` (n,) in order of steps. Nothing for a run that is too short to have a median.
    """
    if len(values) <= SPIKE_WARM_UP:
        return []
    ratios = np.full(len(values), np.nan)
    before_each = running_median(values[:-1], SPIKE_WINDOW)[SPIKE_WARM_UP - 1 :]
    np.divide(values[SPIKE_WARM_UP:], before_each, out=ratios[SPIKE_WARM_UP:], where=before_each > 0)
    if not np.isfinite(ratios).any():
        return []
    first = values[:SPIKE_WARM_UP].tolist()
    floors = [math.inf] * SPIKE_WARM_UP + [spike_floor(first, middle, SPIKE) for middle in before_each.tolist()]
    counted = (values > np.array(floors)) & _sudden(values, ratios)
    highest = np.maximum.accumulate(values)
    counted[BESIDE:warm] &= values[BESIDE:warm] > SPIKE * highest[: max(warm - BESIDE, 0)]
    for i in np.flatnonzero(counted & (ratios > SPIKE)) if len(losses) else ():
        counted[i] = not falling(losses[max(0, i + 1 - LATELY) : i + 1])
    large = np.where(counted, ratios, np.nan)
    risen = bool(np.isfinite(large).any())
    worst = int(np.nanargmax(large if risen else ratios))
    above = np.flatnonzero(large > SPIKE)
    separate = 1 + int((np.diff(above) > RECOVERY).sum()) if len(above) else 0
    after = values[worst + 1 : worst + 1 + RECOVERY]
    before = float(median(values[max(0, worst - SPIKE_WINDOW) : worst]))
    recovered = len(after) < RECOVERY // 2 or float(median(after)) <= 3 * before
    detail = {"count": separate, "recovered": recovered, "above_start": risen}
    return [Signal("gradient.spike", float(ratios[worst]), None, None, int(steps[worst]), "training", detail)]


def _sudden(values: Floats, ratios: Floats) -> NDArray[np.bool_]:
    """Where a norm has jumped, and the steps after that up to the first that is no spike any more."""
    jumped, found = np.zeros(len(values), dtype=bool), np.zeros(len(values), dtype=bool)
    jumped[BESIDE:] = values[BESIDE:] > JUMP * running_median(values, BESIDE)[BESIDE - 1 : -1]
    for i in np.flatnonzero(ratios > SPIKE):
        found[i] = jumped[i] or found[i - 1]
    return found | ~(ratios > SPIKE)


def running_median(values: Floats, width: int) -> Floats:
    """Median over the last ``width`` values at every point; over fewer at the first ``width - 1`` points."""
    start = [float(median(values[: i + 1])) for i in range(min(width - 1, len(values)))]
    if len(values) < width:
        return np.array(start)
    medians: Floats = median(np.lib.stride_tricks.sliding_window_view(values, width))
    return np.concatenate([start, medians])


def parameter_signals(
    sites: Mapping[SeriesKey, NDArray[np.void]],
    owners: Sequence[str],
    source: str,
    ungiven: Collection[str] | None = None,
    *,
    single: bool,
) -> list[Signal]:
    """RMS, gradient and relative update per parameter, and the parameters that never got a gradient.

    ``owners`` are the names of the recorded layers: a parameter's signals carry the layer that holds it. ``ungiven`` names the
    parameters without a gradient at the run's end, where that is known: few steps of a run are measured parameter by parameter.
    """
    rows: dict[str, dict[str, NDArray[np.void]]] = {}
    for key, array in sites.items():
        if key.site in PARAMETER_SITES:
            rows.setdefault(key.layer, {})[key.site] = array
    signals: list[Signal] = []
    for parameter, own in rows.items():
        layer = max(
            (name for name in owners if parameter.startswith(f"{name}.")), key=len, default=parameter.rpartition(".")[0]
        )
        signals += _parameter(parameter, layer or None, own, source, single)
    return signals + ([] if single else _never_updated(rows, ungiven))


def _parameter(
    parameter: str, layer: str | None, own: Mapping[str, NDArray[np.void]], source: str, single: bool
) -> list[Signal]:
    signals = []
    for site, name in (("weight", "weight.rms"), ("weight_grad", "weight.grad_rms")):
        if site in own:
            value = latest(own[site]["rms"].astype(np.float64))
            step = None if single else int(own[site]["step"][-1])
            if math.isfinite(value):
                detail: dict[str, Any] = {"parameter": parameter}
                if not single and own[site]["step"][0] == 0:
                    detail["first"] = float(own[site]["rms"][0])
                signals.append(Signal(name, value, layer, None, step, source, detail))
    if "update" in own and "weight" in own:
        signals += _updates(parameter, layer, own["update"], own["weight"], source)
    return signals


def _updates(
    parameter: str, layer: str | None, update: NDArray[np.void], weight: NDArray[np.void], source: str
) -> list[Signal]:
    common, at, of = np.intersect1d(update["step"], weight["step"], return_indices=True)
    size = weight["rms"][of].astype(np.float64)
    usable = (size > 0) & np.isfinite(size)
    ratios = update["rms"][at].astype(np.float64)[usable] / size[usable]
    if not np.isfinite(ratios).any():
        return []
    early, late = latest(ratios[:EARLY]), latest(ratios)
    steps = common[usable]
    found = [
        Signal("update.ratio", late, layer, None, int(steps[-1]), source, {"parameter": parameter, "early": False})
    ]
    if math.isfinite(early):
        found.append(
            Signal("update.ratio", early, layer, None, int(steps[0]), source, {"parameter": parameter, "early": True})
        )
    return found


def _never_updated(rows: Mapping[str, Mapping[str, NDArray[np.void]]], ungiven: Collection[str] | None) -> list[Signal]:
    """Trainable parameters without any gradient but zero; nothing when the run had no backward pass or no update."""
    if not any("weight_grad" in own for own in rows.values()) or not any("weight" in own for own in rows.values()):
        return []
    silent = sorted(
        parameter
        for parameter, own in rows.items()
        if "weight" in own and not _moved(own) and (ungiven is None or parameter in ungiven)
    )
    zero = [parameter for parameter in silent if "weight_grad" in rows[parameter]]
    detail = {"parameters": silent[:MOST_NAMES], "zero": zero[:MOST_NAMES], "of": len(rows)}
    return [Signal("optimizer.never_updated", float(len(silent)), None, None, None, "training", detail)]


def _moved(own: Mapping[str, NDArray[np.void]]) -> bool:
    gradient = own.get("weight_grad")
    return gradient is not None and bool(np.any((gradient["rms"] != 0) | (gradient["non_finite"] != 0)))
