"""Trace → signals: what a run, or one forward and backward of a batch, has shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gnnstab.records import PARAMETER_SITES, SIGNALS, LayerFacts, SeriesKey, Signal, Signals
from gnnstab.records.vocabulary import (
    GRADIENT_SPIKE,
    INVESTIGATION,
    LOSS,
    LOSS_GENERALISATION_GAP,
    LOSS_GROWTH,
    NOT_SEEN,
    OPTIMIZER_BELOW_EPS_SHARE,
    OPTIMIZER_SOFTER,
    OPTIMIZER_UNDONE,
    TRIALS_ENDED,
    UNGIVEN,
    WEIGHT_RMS,
)
from gnnstab.signals._extremes import short_run, with_extremes
from gnnstab.signals._measures import measured_signals, parsed, streams
from gnnstab.signals._places import place_signals
from gnnstab.signals._rows_alone import with_rows
from gnnstab.signals._series import growth_signals, run_series
from gnnstab.signals._window import LATEST_STEPS, MOST_POINTS, latest
from gnnstab.signals.gradients import gradient_signals
from gnnstab.signals.optimisation import first_moves, gap_signals, overshoot_signals, parameter_signals, step_signals
from gnnstab.trace import Trace

if TYPE_CHECKING:
    from numpy.typing import NDArray

TRAINED_STEPS = 200
"""Recorded updates after which weights count as trained."""

_MISSING = {
    "attention.": "no attention was measured in the full tier",
    "gradient.": "no backward pass was recorded; pass a loss, or record a training run",
    "optimizer.": "the optimizer's state is not known; pass a checkpoint that holds it, or the optimizer",
    "logit.": "the trace does not hold the weights; pass the checkpoint or the model",
    "gain.": "the trace does not hold the weights; pass the checkpoint or the model",
    LOSS_GENERALISATION_GAP: "no validation loss is known; pass it with monitor.validation(loss), beside monitor.loss(loss)",
    "aggregation.": "no aggregation other than attention was recorded",
    "hub.": "no layer adds its messages to a skip of its own, beside which those of a hub could be weighed",
    "pool.": "no pooling that adds up was recorded; pass the model and a batch of graphs",
    "update.": "no optimizer step was recorded",
    "place.": "the places beside the attention layers were not looked at; pass the model and a batch, or record a training run",
    LOSS_GROWTH: "fewer steps were recorded with a finite loss and gradient norm than a trend needs",
    LOSS: "no loss is known; pass it with monitor.loss(loss)",
    GRADIENT_SPIKE: "fewer steps were recorded than a spike needs in front of it",
    WEIGHT_RMS: "the run ended before its parameters were measured",
}

_OF_A_RUN = {
    OPTIMIZER_BELOW_EPS_SHARE: "no second moments were read; the optimizer keeps none, or the run ended before",
    OPTIMIZER_UNDONE: "nothing was undone at the end of the run; that takes monitor.loss(loss), and a step that can be taken again",
}
"""Of a run whose optimizer is known."""

_BY_DIAGNOSE = "gnnstab.diagnose(model, batch, loss, optimizer) takes the time that it needs"

_NO_GRADIENTS = "no gradients of parameters were seen; pass the optimizer to the monitor"


# Numbers at the end of the range overflow where they are averaged; the Inf that comes out is the right answer.
@np.errstate(all="ignore")
def from_trace(trace: Trace) -> Signals:
    """The signals of a trace.

    The trace's metadata may say ``source`` (``training``, ``batch`` or ``synthetic``), ``precision`` and ``trained``.
    Of a layer that ran in several modes one is judged, that of the update first; which one stands in the detail.
    """
    meta, steps = trace.meta, trace.step_arrays()
    layers = _with_norms(trace.layers(), meta.get("norms", ""))
    source = meta.get("source", "training")
    single = source != "training"
    sites, measures = _sites(trace), trace.measures()
    full = streams(measures)
    values, undefined = measured_signals(full, source, single=single)
    values += gradient_signals(sites, layers, source, single=single)
    silent = {str(name) for name in parsed(meta[UNGIVEN], list)} if UNGIVEN in meta else None
    values += parameter_signals(sites, [layer.name for layer in layers], source, silent, single=single)
    values += _modes_apart(sites, layers, source)
    values += place_signals(meta, source)
    series = () if single else tuple(run_series(sites, full, steps, layers))
    if not single:
        values += step_signals(steps)
        values += first_moves(measures) + overshoot_signals(measures, steps)
        values += gap_signals(steps, measures)
        values += growth_signals(series)
        values = with_extremes(trace, full, values)
    if source == "synthetic":
        return _rebuilt(trace, layers, values)
    return Signals(
        kind="trace" if not single else "model",
        layers=layers,
        values=tuple(values),
        series=series,
        events=trace.events() if single else with_rows(trace, sites),
        blind=trace.blind(),
        missing=_missing(values, undefined) | ({} if single else _missing_in_run(steps, meta)),
        context={
            **_context(trace, source, layers, len(steps), short_run(0 if single else len(steps), measures)),
            **({"losses": [float(loss) for loss in steps["loss"]]} if source == "batch" else {}),
        },
    )


def _sites(trace: Trace) -> dict[SeriesKey, Any]:
    """Layers in as many rows as a series can hold; parameters, which the full tier records now and then, in full."""
    return {**trace.sites(points=MOST_POINTS), **trace.sites(site=PARAMETER_SITES)}


def _with_norms(layers: tuple[LayerFacts, ...], norms: str) -> tuple[LayerFacts, ...]:
    """Fill what normalises beside a layer from the metadata ``norms``: JSON, layer → ``before`` and ``after``."""
    beside = {name: one for name, one in parsed(norms, dict).items() if isinstance(one, dict)}
    return tuple(
        replace(
            layer,
            norm_before=_text(beside[layer.name].get("before")) if layer.norm_before is None else layer.norm_before,
            norm_after=_text(beside[layer.name].get("after")) if layer.norm_after is None else layer.norm_after,
        )
        if layer.name in beside
        else layer
        for layer in layers
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _rebuilt(trace: Trace, layers: Sequence[LayerFacts], values: Sequence[Signal]) -> Signals:
    """Of layers that were rebuilt from a file: only their numbers; dropout, precision and the like are not the user's."""
    bare = tuple(LayerFacts(layer.name, layer.kind, layer.position, layer.attention) for layer in layers)
    return Signals(kind="checkpoint", layers=bare, values=tuple(values), events=trace.events(), blind=trace.blind())


def _missing(values: Sequence[Signal], undefined: dict[str, str]) -> dict[str, str]:
    seen = {signal.name for signal in values}
    kept = {
        key: reason
        for key, reason in _MISSING.items()
        if key in SIGNALS or not any(name.startswith(key) for name in seen)
    }
    return {**kept, **undefined}


def _missing_in_run(steps: NDArray[np.void], meta: Mapping[str, str]) -> dict[str, str]:
    """What a run alone lacks: its loss, or, without an optimizer, gradients and moments; and what was given up at its end."""
    known = "optimizer" in meta
    found = dict(_OF_A_RUN) if known else dict.fromkeys((GRADIENT_SPIKE, WEIGHT_RMS, LOSS_GROWTH), _NO_GRADIENTS)
    found |= dict.fromkeys((OPTIMIZER_UNDONE, OPTIMIZER_SOFTER), _given_up(meta)) if TRIALS_ENDED in meta else {}
    return found | ({} if np.isfinite(steps["loss"]).any() else {LOSS_GROWTH: _MISSING[LOSS]})


def _given_up(meta: Mapping[str, str]) -> str:
    return f"steps on a copy at the end of the run were given up after {_number(meta[TRIALS_ENDED])} s; {_BY_DIAGNOSE}"


def _context(
    trace: Trace, source: str, layers: Sequence[LayerFacts], steps: int, told: Sequence[str]
) -> dict[str, Any]:
    meta, others = trace.meta, {blind.layer for blind in trace.blind() if blind.is_other_attention}
    context: dict[str, Any] = {
        "precision": meta.get("precision", "fp32"),
        "steps": steps,
        "layers_expected": sum(layer.attention for layer in layers) + len(others),
        "loss_given": meta.get("loss_given") == "true",
        "loss_graph": meta.get("loss_graph", ""),
        "assumptions": [*(note for note in meta.get("assumptions", "").split("\n") if note), *told],
        "notes": [
            *trace.notes,
            *([f"the recording failed: {meta['failure']}"] if "failure" in meta else []),
            *([_given_up(meta)] if TRIALS_ENDED in meta else []),
        ],
    }
    if source == "training":
        context["closed"] = trace.complete
        context["rows_doubtful"] = trace.doubtful_rows
        context["tables_missing"] = trace.missing_tables
        context["rows_lost"] = _number(meta.get("dropped.rows")) + _number(meta.get("malformed.rows"))
        context["steps_unseen"] = _number(meta.get("unseen.steps"))
        if trace.missing_ranks:
            context["ranks_missing"] = trace.missing_ranks
        if left_out := [note for note in trace.notes if note.startswith("left out ")]:
            context["left_out"] = left_out
        if kept := meta.get("stale.gradients"):
            context["stale_gradients"] = _number(kept) or False
        if untold := parsed(meta.get("untold", ""), dict):
            context["untold"] = {str(key): value for key, value in untold.items() if isinstance(value, int)}
        scaled = parsed(meta.get("scaled.steps", ""), dict)
        if all(type(scaled.get(name)) in (int, float) for name in ("steps", "scale")):
            context["scaled_steps"] = {"steps": scaled["steps"], "scale": scaled["scale"]}
        if "ended.by" in meta:
            context["ended_by"] = meta["ended.by"]
        context["steps_dropped"] = _number(meta.get("dropped.steps"))
        context["trained"] = True if steps >= TRAINED_STEPS else None
    if "optimizer" in meta:
        context["optimizer"] = meta["optimizer"]
    several = [one for one in parsed(meta.get("optimizers", ""), list) if _is_optimizer(one)]
    if len(several) > 1:
        context["several_optimizers"] = several
    if meta.get("trained") in ("true", "false"):
        context["trained"] = meta["trained"] == "true"
    found = {
        "norm_without_batch": tuple(n for n in parsed(meta.get("norm_without_batch", ""), list) if isinstance(n, str)),
        "normalising": tuple(n for n in parsed(meta.get("normalising", ""), list) if isinstance(n, str)),
        NOT_SEEN: [n for n in parsed(meta.get(NOT_SEEN, ""), list) if isinstance(n, str)],
        INVESTIGATION: parsed(meta.get(INVESTIGATION, ""), dict),
        "norm_smallest": {
            name: tuple(value)  # Class and number of nodes.
            for name, value in parsed(meta.get("norm_smallest", ""), dict).items()
            if isinstance(value, list) and [type(part) for part in value] == [str, int]
        },
    }
    return {**context, **{name: value for name, value in found.items() if value}}


def _is_optimizer(told: object) -> bool:
    """True of what a monitor writes of one of several optimizers."""
    if not isinstance(told, dict) or not isinstance(told.get("class"), str):
        return False
    names = told.get("names")
    numbers = all(type(told.get(key)) is float for key in ("rate", "over"))
    return numbers and isinstance(names, list) and all(isinstance(name, str) for name in names)


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isdecimal() and len(text) < 19 else 0


def _modes_apart(sites: Any, layers: Sequence[LayerFacts], source: str) -> list[Signal]:
    """How far the output's RMS differs between train and eval mode, per layer that ran in both."""
    signals = []
    for layer in layers:
        own = {
            key: rows
            for key, rows in sites.items()
            if key.layer == layer.name and key.site == "output" and key.call == 0
        }
        train, quiet = _rms(own, ("train", "train-nograd")), _rms(own, ("eval", "eval-grad"))
        if train and quiet:
            detail = {"train": train, "eval": quiet}
            signals.append(
                Signal("output.train_eval_difference", abs(train / quiet - 1), layer.name, None, None, source, detail)
            )
    return signals


def _rms(own: dict[SeriesKey, Any], modes: tuple[str, ...]) -> float | None:
    for mode in modes:
        for key, rows in own.items():
            if key.mode == mode:
                value = latest(rows["rms"].astype(float), LATEST_STEPS)
                return value if value == value else None
    return None
