"""How the signals grow with in-degree, and where each limit breaks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import nn

from gnnstab.errors import NothingEvaluable, UsageError
from gnnstab.fixes.model_structure import duplicate
from gnnstab.observation import measured_signals
from gnnstab.probe.batches.arguments import as_arguments
from gnnstab.probe.batches.data import taken
from gnnstab.probe.replaying.evaluating import in_mode
from gnnstab.randomness import keeps_random_state
from gnnstab.records import Signals
from gnnstab.records.vocabulary import (
    AGGREGATION_RMS,
    ATTENTION_ENTROPY,
    ATTENTION_ONE_HOT_SHARE,
    OUTPUT_RMS,
    PRECISION_FP16_HEADROOM,
    PRECISION_ROUNDING,
    SCORE_MAX_ABS,
    SCORE_STD,
)
from gnnstab.rules.gs301_attention_explosion import AttentionExplosion
from gnnstab.verification._growth import GraphCall, bound, check_growth, find_graph_call, grown, in_degrees
from gnnstab.verification._sweep import Progress, sweep
from gnnstab.verification.measuring import judged

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Multiples of the batch's in-degree that are measured."""

GROWING = (SCORE_STD, SCORE_MAX_ABS, OUTPUT_RMS, AGGREGATION_RMS)
"""Signals whose growth exponent is fitted."""

SHARES = (ATTENTION_ONE_HOT_SHARE, ATTENTION_ENTROPY)
"""Signals between 0 and 1, interpolated instead."""


@dataclass(frozen=True)
class Point:
    """The signals at one in-degree, one precision and one seed."""

    degree: float
    """Mean in-degree."""

    nodes: int
    precision: str
    values: Mapping[str, float] = field(default_factory=dict)
    """``signal|layer`` → value, aggregated over heads."""

    non_finite: str = ""
    """Layer and stage of the first non-finite value; empty for none."""

    codes: tuple[str, ...] = ()
    """Rules that fire at warning or above."""


@dataclass(frozen=True, slots=True)
class Exponent:
    """p in signal ∝ in-degree^p."""

    signal: str
    layer: str
    value: float
    interval: tuple[float, float]
    """95 %, from the scatter of the points around the line."""


@dataclass(frozen=True, slots=True)
class Limit:
    """The in-degree at which something breaks."""

    what: str
    """In words: ``attention one-hot``, ``fp16 overflow``."""

    layer: str
    degree: float
    """Mean in-degree from which on; inf when not reached within the measured range and its extrapolation."""

    extrapolated: bool
    """True when it lies beyond what was measured."""

    sentence: str
    signal: str = ""
    """The signal that crosses ``line`` there."""

    line: float = math.nan
    rises: bool = True
    """True when the unhealthy side lies above the line."""

    at_most: bool = False
    """True when the smallest in-degree that was measured is unhealthy already."""


@dataclass(frozen=True)
class Scaling:
    """All points, the exponents, and the limits."""

    points: tuple[Point, ...]
    exponents: tuple[Exponent, ...]
    limits: tuple[Limit, ...]
    layers: tuple[str, ...]
    module: str
    """The module that was run on the grown graphs; ``""`` for the model itself."""

    def predict(self, signal: str, layer: str, degree: float) -> float:
        """The signal at an in-degree: interpolated over ln(in-degree), beyond the ends continued by the exponent.

        Shares and entropies, which end at 0 and 1, are interpolated as logits.
        """
        if not degree > 0:
            raise UsageError(f"degree={degree}; give an in-degree above 0")
        degrees, values = _curve(self.points, signal, layer)
        if not len(degrees):
            raise UsageError(f"{signal} of {layer!r} was not measured; layers: {', '.join(self.layers)}")
        known = (values > 0) | (signal in SHARES)
        at = _line(np.log(degrees[known]), _scaled(signal, values[known]), math.log(degree))
        return 1 / (1 + math.exp(-at)) if signal in SHARES else math.exp(at)

    def curve(self, signal: str, layer: str) -> tuple[list[float], list[float]]:
        """Mean in-degrees and the signal there, in fp32 where that was run, averaged over seeds; empty when not measured."""
        degrees, values = _curve(self.points, signal, layer)
        return degrees.tolist(), values.tolist()

    @property
    def not_finite(self) -> str:
        """``not finite from in-degree 2 on, in fp32 (gnn1, score)``: in fp32, or where no limit says so; else empty."""
        known = any(math.isfinite(limit.degree) for limit in self.limits)
        bad = [p for p in self.points if p.non_finite and (p.precision == "fp32" or not known)]
        first = min(bad, key=lambda p: (p.precision != "fp32", p.degree), default=None)
        if first is None:
            return ""
        return f"not finite from in-degree {written(first.degree)} on, in {first.precision} ({first.non_finite})"

    @property
    def summary(self) -> str:
        """``attention one-hot from in-degree 12 (gnn1), fp16 overflow from 96 (gnn1)``."""
        if self.not_finite:
            return self.not_finite
        parts = [limit.sentence for limit in self.limits if math.isfinite(limit.degree)]
        if not parts and not self.limits:
            return "no limit was looked for: no attention layer was measured at two in-degrees above 0"
        return ", ".join(parts) or "no limit is reached: nothing breaks with more neighbours per node"


@keeps_random_state
def scale(
    model: nn.Module,
    *,
    batch: Any,
    factors: Sequence[float] = FACTORS,
    precisions: Sequence[str] = ("fp32", "bf16", "fp16"),
    seeds: int = 2,
    workers: int = 1,
    store: str | Path | None = None,
    progress: Progress | None = None,
) -> Scaling:
    """Measure the model on graphs of the user's kind with growing in-degree.

    What counts is in-degree: softmax attention itself does not mind the number of nodes. The graphs are made from the
    batch: fewer neighbours by leaving edges out, more by joining neighbourhoods that occur in it (`growth.grown`).

    Args:
        model: Any module that calls some module of its own, or is itself called, with node features and edges.
        batch: As for `gnnstab.diagnose`; the first one of several is used.
        factors: Multiples of the batch's in-degree.
        precisions: Under which to run every graph; ``fp16`` and ``bf16`` use autocast.
        seeds: Draws of edges per factor.
        workers: Processes.
        store: A file that keeps every finished point.
        progress: Called after every point.

    Raises:
        UsageError: No module gets node features and edges, or a factor is not positive, not finite, or makes too many edges
            (`growth.check_growth`).
        NothingEvaluable: The batch has no edge.
    """
    if not factors or not all(0 < factor < math.inf for factor in factors):
        raise UsageError("factors must be positive, finite multiples of the batch's in-degree")
    twin = in_mode(duplicate(model), False)
    call = find_graph_call(twin, as_arguments(taken(batch, twin), twin)[0])
    if not call.graph[1].size(1):
        raise NothingEvaluable("the batch has no edges: there is no in-degree that could grow; pass a batch with some")
    check_growth(call, max(factors))
    part = twin.get_submodule(call.name)
    plan = [(f, p, s) for f in sorted(factors) for p in precisions for s in range(seeds)]
    jobs = {f"{f:g}/{p}/{s}": partial(_point, part, call, f, p, s) for f, p, s in plan}
    found = sweep(
        jobs, Point, of=(twin, call.name, call.args, call.kwargs), workers=workers, progress=progress, store=store
    )
    return evaluate(tuple(found[key] for key in jobs), call.name)


def _point(part: nn.Module, call: GraphCall, factor: float, precision: str, seed: int) -> Point:
    arguments = grown(call, factor, torch.Generator().manual_seed(seed))
    degree, _, nodes = in_degrees(arguments)
    part, batch = bound(part, arguments)
    seen = judged(measured_signals(part, batch, precision=precision))
    return Point(
        degree,
        nodes,
        precision,
        _values(seen.signals),
        _non_finite(seen.signals),
        tuple(sorted({f.code for f in seen.findings})),
    )


def _values(signals: Signals) -> dict[str, float]:
    names = (*GROWING, *SHARES, PRECISION_FP16_HEADROOM, PRECISION_ROUNDING)
    return {
        f"{s.name}|{(s.layer or '').removeprefix('inner.')}": s.value
        for name in names
        for s in signals.find(name, head=None)
        if math.isfinite(s.value)
    }


def _non_finite(signals: Signals) -> str:
    events = [e for e in signals.events if e.kind == "non-finite"]
    if not events:
        return ""
    first = min(events, key=lambda e: e.step)
    return f"{first.layer or 'the model'}, {first.stage or 'unknown stage'}"


def evaluate(points: Sequence[Point], module: str = "") -> Scaling:
    """Exponents and limits from measured points."""
    layers = tuple(
        dict.fromkeys(key.partition("|")[2] for p in points for key in p.values if key.startswith("score.std|"))
    )
    exponents = tuple(
        found
        for signal in GROWING
        for layer in dict.fromkeys(k.partition("|")[2] for p in points for k in p.values if k.startswith(f"{signal}|"))
        if (found := _exponent(points, signal, layer)) is not None
    )
    limits = tuple(limit for layer in layers for limit in _limits(points, layer))
    return Scaling(tuple(points), exponents, tuple(sorted(limits, key=lambda limit: limit.degree)), layers, module)


def _curve(points: Sequence[Point], signal: str, layer: str) -> tuple[Any, Any]:
    """In-degrees and values in fp32 (else in whatever was measured), averaged over seeds, by in-degree."""
    chosen = [p for p in points if p.precision == "fp32"] or list(points)
    pairs = [
        (p.degree, p.values[f"{signal}|{layer}"]) for p in chosen if f"{signal}|{layer}" in p.values and p.degree > 0
    ]
    # Draws of one factor differ by a few edges: they are one point of the curve.
    groups: dict[float, list[tuple[float, float]]] = {}
    for degree, value in sorted(pairs):
        key = next((k for k in groups if abs(math.log(degree / k)) < 0.05), degree)
        groups.setdefault(key, []).append((degree, value))
    means = [np.mean(group, axis=0) for group in groups.values()]
    return np.array([m[0] for m in means]), np.array([m[1] for m in means])


def _line(x: Any, y: Any, at: float) -> float:
    """Linear interpolation, continued at both ends with the slope of the last two points."""
    if len(x) == 1:
        return float(y[0])
    low = int(np.clip(np.searchsorted(x, at) - 1, 0, len(x) - 2))
    return float(y[low] + (y[low + 1] - y[low]) * (at - x[low]) / (x[low + 1] - x[low]))


def _exponent(points: Sequence[Point], signal: str, layer: str) -> Exponent | None:
    degrees, values = _curve(points, signal, layer)
    if len(degrees) < 3 or not (values > 0).all():
        return None
    x, y = np.log(degrees), np.log(values)
    if not np.ptp(y):
        return Exponent(signal, layer, 0.0, (0.0, 0.0))
    fit = stats.linregress(x, y)
    half = float(stats.t.ppf(0.975, len(degrees) - 2) * fit.stderr)
    return Exponent(signal, layer, float(fit.slope), (float(fit.slope) - half, float(fit.slope) + half))


def _limits(points: Sequence[Point], layer: str) -> list[Limit]:
    rule = AttentionExplosion()
    wanted = (
        ("attention one-hot", ATTENTION_ONE_HOT_SHARE, rule.one_hot_share, True),
        ("attention saturated", ATTENTION_ENTROPY, rule.warn_entropy, False),
        ("fp16 overflow", PRECISION_FP16_HEADROOM, 1.0, False),
        # 8 bits of mantissa: the rounding of a logit reaches a tenth at 0.1·2⁸.
        ("bf16 logits off by 10 %", SCORE_MAX_ABS, 0.1 * 256, True),
    )
    return [found for row in wanted if (found := _limit(points, layer, *row)) is not None]


def _limit(points: Sequence[Point], layer: str, what: str, signal: str, line: float, rises: bool) -> Limit | None:
    """Where the curve crosses ``line``: interpolated between points, else extrapolated by at most a factor of 16."""
    degrees, values = _curve(points, signal, layer)
    if len(degrees) < 2:
        return None
    broken = values >= line if rises else values <= line
    scaled, goal = _scaled(signal, values), float(_scaled(signal, np.array([line]))[0])

    def limit(degree: float, *, extrapolated: bool = False, at_most: bool = False) -> Limit:
        beyond = " (extrapolated)" if extrapolated else " or less" if at_most else ""
        said = f"{what} from in-degree {written(degree)}{beyond} ({layer})" if math.isfinite(degree) else ""
        return Limit(what, layer, degree, extrapolated, said, signal, line, rises, at_most)

    x = np.log(degrees)
    if broken[0]:
        return limit(float(degrees[0]), at_most=True)
    first = int(np.argmax(broken)) if broken.any() else len(degrees)
    low = min(first, len(degrees) - 1) - 1
    slope = (scaled[low + 1] - scaled[low]) / (x[low + 1] - x[low])
    if slope == 0 or not np.isfinite(slope) or (slope > 0) != rises:
        return limit(math.inf, extrapolated=True)
    # Compared as logarithms: a nearly flat curve crosses the line beyond the largest float.
    crossing = float(x[low] + (goal - scaled[low]) / slope)
    if crossing > math.log(16 * degrees[-1]):
        return limit(math.inf, extrapolated=True)
    return limit(math.exp(crossing), extrapolated=not broken.any())


def written(degree: float) -> str:
    """An in-degree as people read it."""
    return f"{degree:.0f}" if degree >= 10 else f"{degree:.1f}"


def _scaled(signal: str, values: Any) -> Any:
    if signal in SHARES:
        bounded = np.clip(values, 1e-3, 1 - 1e-3)
        return np.log(bounded / (1 - bounded))
    return np.log(np.maximum(values, 1e-300))
