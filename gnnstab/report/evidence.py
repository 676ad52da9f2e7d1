"""The evidence of a diagnosis, sorted for drawing: profiles over depth, distributions, growth, limits.

Page and figures show the same numbers because both ask here. Nothing is measured and nothing is guessed: what a
diagnosis does not hold comes back empty.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from gnnstab.records import SEVERITIES, SIGNALS, Diagnosis, Event, Finding, FixAdvice, LayerFacts, Series, Signal
from gnnstab.records.vocabulary import (
    ATTENTION_ENTROPY,
    GRADIENT_INPUT_RMS,
    GRADIENT_NORM,
    GRADIENT_OUTPUT_RMS,
    LOSS,
    OUTPUT_RMS,
    PRECISION_FP16_HEADROOM,
    SCORE_MAX_ABS,
    WEIGHT_NON_FINITE,
)
from gnnstab.report.distribution import Distribution, distribution
from gnnstab.rules.limits import limits_of

T = TypeVar("T")

Array = NDArray[np.float64]

MODEL = ""
"""Stands for the model as a whole where a layer's name is expected."""


@dataclass(frozen=True, slots=True)
class Limit:
    """Where a number stops being healthy."""

    value: float
    severity: str
    side: str
    """``below`` or ``above``: the unhealthy side."""

    def breached_by(self, value: float) -> bool:
        """True when ``value`` lies on the unhealthy side; a NaN lies on neither."""
        return value < self.value if self.side == "below" else value > self.value


def own_limits(signal: str) -> tuple[Limit, ...]:
    """The rules' own limits of a signal, drawn even when no finding names one."""
    kind = SIGNALS.get(signal)
    if kind is None or "typical" in kind.groups:
        return ()
    return tuple(Limit(value, severity, kind.worse) for value, severity in limits_of(signal))


def status(value: float, limits: Sequence[Limit]) -> str:
    """The worst severity whose limit ``value`` breaches, ``""`` for none."""
    breached = [limit.severity for limit in limits if limit.breached_by(value)]
    return "error" if "error" in breached else (breached[0] if breached else "")


@dataclass(frozen=True, slots=True)
class Profile:
    """One signal over depth."""

    name: str
    layers: tuple[str, ...]
    values: Array
    """Aggregate over heads per layer, shape (layers,); NaN where not measured or not finite."""

    low: Array
    """Smallest head per layer, shape (layers,); equal to ``values`` where heads were not measured apart."""

    high: Array
    """Largest head per layer, shape (layers,)."""


@dataclass(frozen=True, slots=True)
class Heat:
    """One signal over layers and steps."""

    name: str
    layers: tuple[str, ...]
    steps: NDArray[np.int64]
    values: Array
    """Shape (layers, steps); NaN where not recorded."""


@dataclass(frozen=True, slots=True)
class BeforeAfter:
    """What one fix did to its signal."""

    fix: FixAdvice
    limits: tuple[Limit, ...]


class Evidence:
    """The numbers of one diagnosis, indexed by layer, signal and head."""

    def __init__(self, diagnosis: Diagnosis) -> None:
        self.diagnosis = diagnosis
        self._home: dict[str, str] = {}
        self._profiles: dict[str, Profile | None] = {}
        self._signals: dict[tuple[str, str, int | None, str], Signal] = {}
        self._one: dict[tuple[str, str, int | None], Signal] = {}
        # That a tensor of a file holds no NaN is nothing to read of it.
        self._told = [s for s in diagnosis.signals if s.name != WEIGHT_NON_FINITE or s.value != 0]
        for signal in self._told:
            self._keep(signal)
        for (layer, name, head, _), signal in self._signals.items():
            self._one.setdefault((layer, name, head), signal)

    def _keep(self, signal: Signal) -> None:
        """Keep the latest measurement of each number; one on synthetic input only where there is no other."""
        key = (self.owner(signal.layer), signal.name, signal.head, parameter(signal))
        kept = self._signals.get(key)
        if kept is None or _rank(signal) >= _rank(kept):
            self._signals[key] = signal

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """Every layer that is named anywhere, in order of depth; parameters count towards the layer that owns them."""
        d = self.diagnosis
        known = [facts.name for facts in sorted(d.layers, key=lambda f: f.position)]
        lists: tuple[Sequence[Any], ...] = (d.findings, self._told, d.series, d.events, d.coverage.blind)
        mentioned = [item.layer for items in lists for item in items]
        owners = frozenset(known)
        return tuple(dict.fromkeys([*known, *(name for name in mentioned if name and not _owner(name, owners))]))

    @cached_property
    def _owners(self) -> frozenset[str]:
        return frozenset(self.layers)

    def owner(self, name: str | None) -> str:
        """The layer that a module or parameter name belongs to; `MODEL` for None or a stranger."""
        if name and name not in self._home:
            self._home[name] = _owner(name, self._owners)
        return self._home[name] if name else MODEL

    @cached_property
    def facts(self) -> Mapping[str, LayerFacts]:
        """Configuration by layer name."""
        return {facts.name: facts for facts in self.diagnosis.layers}

    @cached_property
    def findings_by_layer(self) -> Mapping[str, tuple[Finding, ...]]:
        """Findings by owning layer, `MODEL` for those of the whole model."""
        return _grouped((self.owner(finding.layer), finding) for finding in self.diagnosis.findings)

    @cached_property
    def _by_layer(self) -> Mapping[str, tuple[Signal, ...]]:
        return _grouped((layer, signal) for (layer, *_), signal in self._signals.items())

    def numbers(self, layer: str = MODEL) -> tuple[Signal, ...]:
        """The aggregate numbers of one layer, in the order of the vocabulary."""
        order = {name: position for position, name in enumerate(SIGNALS)}
        found = [s for s in self._by_layer.get(layer, ()) if s.head is None]
        return tuple(sorted(found, key=lambda s: (order[s.name], parameter(s))))

    def signal(self, name: str, layer: str = MODEL, head: int | None = None) -> Signal | None:
        """One measurement, or None."""
        return self._one.get((layer, name, head))

    def value(self, name: str, layer: str = MODEL, head: int | None = None) -> float:
        """One number, NaN when it was not measured."""
        signal = self.signal(name, layer, head)
        return math.nan if signal is None else signal.value

    def heads(self, name: str, layer: str) -> tuple[Signal, ...]:
        """The per-head values of one signal, by head."""
        found = [s for s in self._by_layer.get(layer, ()) if s.name == name and s.head is not None]
        return tuple(sorted(found, key=lambda s: s.head or 0))

    def profile(self, name: str) -> Profile | None:
        """One signal over depth, or None when no layer measured it; the section of every layer asks for the same ones."""
        if name not in self._profiles:
            self._profiles[name] = self._profile(name)
        return self._profiles[name]

    def _profile(self, name: str) -> Profile | None:
        layers = [layer for layer in self.layers if self.signal(name, layer) or self.heads(name, layer)]
        if not layers:
            return None
        rows = [self._profile_row(name, layer) for layer in layers]
        return Profile(name, tuple(layers), *np.array(rows, dtype=np.float64).T)

    def _profile_row(self, name: str, layer: str) -> tuple[float, float, float]:
        heads = [s.value for s in self.heads(name, layer) if math.isfinite(s.value)]
        value = self.value(name, layer)
        if self.signal(name, layer) is None and heads:
            value = float(np.mean(heads)) if name.startswith(("attention.", "gate.")) else max(heads)
        value = value if math.isfinite(value) else math.nan
        return value, min(heads, default=value), max(heads, default=value)

    def broken(self, name: str) -> dict[str, str]:
        """The layers in which a signal was measured and is no finite number, with the word for what it is."""
        found = {layer: [s for s in (self.signal(name, layer), *self.heads(name, layer)) if s] for layer in self.layers}
        return {
            layer: "NaN" if any(math.isnan(s.value) for s in signals) else "∞"
            for layer, signals in found.items()
            if any(not math.isfinite(s.value) for s in signals)
        }

    def limits(self, name: str) -> tuple[Limit, ...]:
        """Limits of a signal: those that findings were raised against, else those that the rules are known to use."""
        if name in self._limits:
            return self._limits[name]
        formats = {layer.score_format for layer in self.diagnosis.layers} | {self.diagnosis.context.get("precision")}
        if name == PRECISION_FP16_HEADROOM and "fp16" not in formats:
            return ()  # a network that computes in fp32 is not unhealthy for what it would be in fp16
        return own_limits(name)

    @cached_property
    def _limits(self) -> Mapping[str, tuple[Limit, ...]]:
        raised: dict[str, dict[tuple[float, str], Limit]] = {}
        for finding in self.diagnosis.findings:
            if math.isfinite(finding.threshold) and not math.isnan(finding.value):
                side = "below" if finding.value < finding.threshold else "above"
                own = {(m.value, m.side): m for m in own_limits(finding.signal)}
                known = raised.setdefault(finding.signal, own)
                known.setdefault((finding.threshold, side), Limit(finding.threshold, finding.severity, side))
        return {name: tuple(sorted(limits.values(), key=lambda m: m.value)) for name, limits in raised.items()}

    def distributions(self, layer: str) -> tuple[Distribution, ...]:
        """The score distribution of every head of a layer; of all heads together when they were not kept apart."""
        scores = [s for s in self._by_layer.get(layer, ()) if s.name.startswith("score.")]
        heads = sorted({s.head for s in scores if s.head is not None})
        found = [distribution([s for s in scores if s.head == head], head) for head in heads]
        if not any(found):
            found = [distribution([s for s in scores if s.head is None], None)]
        return tuple(d for d in found if d is not None)

    def growth(self, layer: str = MODEL) -> tuple[Series, ...]:
        """The aggregate series of one layer over steps, the telling ones first."""
        order = {name: position for position, name in enumerate(_GROWTH)}
        found = [s for s in self._series_by_layer.get(layer, ()) if s.head is None and len(s.steps)]
        return tuple(sorted(found, key=lambda s: (order.get(s.name, len(order)), s.name)))

    @cached_property
    def _series_by_layer(self) -> Mapping[str, tuple[Series, ...]]:
        return _grouped((self.owner(series.layer), series) for series in self.diagnosis.series)

    def heat(self, name: str) -> Heat | None:
        """One signal over layers and steps, or None when no series was recorded."""
        whole = [s for s in self.diagnosis.series if s.head is None and len(s.steps)]
        found = {s.layer: s for s in whole if s.name == name and s.layer}
        layers = [layer for layer in self.layers if layer in found]
        if not layers:
            return None
        steps = np.unique(np.concatenate([found[layer].steps for layer in layers]))
        values = np.full((len(layers), len(steps)), np.nan)
        for row, layer in enumerate(layers):
            values[row, np.searchsorted(steps, found[layer].steps)] = found[layer].values
        return Heat(name, tuple(layers), steps, values)

    def before_after(self) -> tuple[BeforeAfter, ...]:
        """Every fix whose effect was measured."""
        return tuple(
            BeforeAfter(fix, self.limits(fix.signal) if fix.signal else ())
            for cause in self.diagnosis.causes
            for fix in cause.fixes
            if fix.before is not None and fix.after is not None
        )

    def events(self, layer: str | None = None) -> tuple[Event, ...]:
        """Events in order of step, of one layer or of all."""
        found = [e for e in self.diagnosis.events if layer is None or self.owner(e.layer) == layer]
        return tuple(sorted(found, key=lambda e: e.step))


_GROWTH = (
    SCORE_MAX_ABS,
    ATTENTION_ENTROPY,
    OUTPUT_RMS,
    PRECISION_FP16_HEADROOM,
    GRADIENT_INPUT_RMS,
    GRADIENT_OUTPUT_RMS,
    LOSS,
    GRADIENT_NORM,
)


def parameter(signal: Signal) -> str:
    """The parameter that a number belongs to, ``""`` for none: several of a layer have a number of the same name."""
    named = signal.detail.get("parameter")
    if isinstance(named, str):
        return named
    return signal.layer or "" if signal.name.startswith(("weight.", "optimizer.", "update.")) else ""


def _rank(signal: Signal) -> tuple[bool, int]:
    return signal.source != "synthetic", -1 if signal.step is None else signal.step


def _owner(name: str, owners: frozenset[str]) -> str:
    """The owner with the longest name that is ``name`` itself or a module path in front of it."""
    while name and name not in owners:
        name = name.rpartition(".")[0]
    return name or MODEL


def thin(steps: Array, values: Array, most: int) -> tuple[Array, Array]:
    """At most ``most`` points of a series; of every stretch the smallest and the largest stay, so no peak is lost."""
    if len(steps) <= most:
        return steps, values
    keep: list[int] = [0, len(steps) - 1]
    for chunk in np.array_split(np.arange(len(steps)), max(1, most // 2)):
        finite = chunk[np.isfinite(values[chunk])]
        at = values[finite]
        keep += [int(finite[at.argmin()]), int(finite[at.argmax()])] if len(finite) else [int(chunk[0])]
    chosen = np.unique(keep)
    return steps[chosen], values[chosen]


def worst(findings: Iterable[Finding]) -> str:
    """The highest severity among findings, ``""`` for none."""
    return max((f.severity for f in findings), key=SEVERITIES.index, default="")


def _grouped(pairs: Iterable[tuple[str, T]]) -> dict[str, tuple[T, ...]]:
    found: dict[str, list[T]] = {}
    for layer, item in pairs:
        found.setdefault(layer, []).append(item)
    return {layer: tuple(items) for layer, items in found.items()}
