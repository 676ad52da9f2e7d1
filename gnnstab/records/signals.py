"""Measured numbers, and the collection of them that the rules read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from gnnstab.errors import NotEvaluable
from gnnstab.records._layers import LayerFacts
from gnnstab.records._rows import Blind, Event
from gnnstab.records.vocabulary import SIGNALS

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Signal:
    """One measured number."""

    name: str
    """A key of `SIGNALS`."""

    value: float

    layer: str | None = None
    """Module path; None for a number of the whole model."""

    head: int | None = None
    """Attention head; None for the aggregate over heads."""

    step: int | None = None
    """Training step of the measurement; None outside a training run."""

    source: str = "batch"
    """``batch`` (one batch given), ``training`` (a recorded run), ``weights``, ``optimizer``, ``synthetic``
    (generated graphs, RMS-1 inputs)."""

    detail: Mapping[str, Any] = field(default_factory=dict)
    """Numbers and names that go with it: the in-degree it was measured at, the parameter, a histogram."""

    def __post_init__(self) -> None:
        if self.name not in SIGNALS:
            raise ValueError(f"{self.name!r} is no signal of gnnstab; add it to records/vocabulary.py")

    @property
    def unit(self) -> str:
        """Unit of the value, from the vocabulary."""
        return SIGNALS[self.name].unit


@dataclass(frozen=True, slots=True)
class Series:
    """One signal over the steps of a run."""

    name: str
    layer: str | None
    head: int | None
    steps: NDArray[np.int64]
    """Steps, ascending, shape (n,)."""

    values: NDArray[np.float64]
    """Values at those steps, shape (n,)."""


@dataclass(frozen=True)
class Signals:
    """Everything that the rules may ask: layers, numbers, series, events, and why something is missing."""

    kind: str
    """``checkpoint``, ``trace`` or ``model``."""

    layers: tuple[LayerFacts, ...]
    """All recorded layers in order, attention layers and others."""

    values: tuple[Signal, ...] = ()
    series: tuple[Series, ...] = ()
    events: tuple[Event, ...] = ()
    blind: tuple[Blind, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
    """Signal name or prefix (``attention.``) → why it is missing and what to pass to see it."""

    context: Mapping[str, Any] = field(default_factory=dict)
    """Facts of the run: ``precision`` (fp32, fp16, bf16), ``trained`` (bool | None), ``steps`` (int), ``loss_given``,
    ``losses`` (of the batches),
    ``layers_expected``, ``assumptions`` (list of str), ``linear_initialisation`` (label of the plain Linear layers)."""

    @property
    def attention_layers(self) -> tuple[LayerFacts, ...]:
        """The layers whose attention is judged."""
        return tuple(layer for layer in self.layers if layer.attention)

    @property
    def depth(self) -> int:
        """Length of the longest chain of attention layers; those beside each other, as of several relations, count once."""
        depths: dict[str, int] = {}
        deepest = 0
        for layer in sorted(self.attention_layers, key=lambda one: one.position):
            beside = set(layer.beside or ())
            # Most layers have none beside them, and a model may have thousands.
            in_front = [d for name, d in depths.items() if name not in beside] if beside else [deepest]
            depths[layer.name] = 1 + max(in_front, default=0)
            deepest = max(deepest, depths[layer.name])
        return deepest

    def layer(self, name: str) -> LayerFacts | None:
        """The facts of one layer, or None."""
        return self._layers.get(name)

    def find(
        self, name: str, *, layer: str | None = None, head: int | str | None = "any", source: str | None = None
    ) -> tuple[Signal, ...]:
        """All values of a signal; ``layer``, ``head`` and ``source`` narrow it (``head=None``: only the aggregate)."""
        if name not in SIGNALS:
            raise ValueError(f"{name!r} is no signal of gnnstab")
        return tuple(
            s
            for s in self._index.get((name, layer), ())
            if (head == "any" or s.head == head) and (source is None or s.source == source)
        )

    def value(self, name: str, *, layer: str | None = None, head: int | None = None) -> float | None:
        """One aggregate value, or None when it was not measured; the worst finite one when there are several."""
        found = self.find(name, layer=layer, head=head)
        finite = [s.value for s in found if math.isfinite(s.value)]
        return max(finite) if finite else (found[0].value if found else None)

    def need(self, name: str, **narrow: Any) -> tuple[Signal, ...]:
        """Like `find`, but raise `NotEvaluable` with the reason when nothing was measured."""
        found = self.find(name, **narrow)
        if not found:
            raise NotEvaluable(self.why_missing(name))
        return found

    def over_steps(self, name: str, *, layer: str | None = None, head: int | None = None) -> tuple[Series, ...]:
        """The series of one signal, all layers unless one is named."""
        return tuple(
            s for s in self.series if s.name == name and s.head == head and (layer is None or s.layer == layer)
        )

    def why_missing(self, name: str) -> str:
        """The reason why a signal is absent, with what to pass to see it."""
        for key in sorted(self.missing, key=len, reverse=True):
            if name.startswith(key):
                return self.missing[key]
        where = ", where it is asked for," if (name, None) in self._index else ""
        return f"{name}{where} was not recorded"

    @cached_property
    def _index(self) -> dict[tuple[str, str | None], list[Signal]]:
        """By name alone (None), and by name and layer: a file may have thousands of layers."""
        index: dict[tuple[str, str | None], list[Signal]] = {}
        for signal in self.values:
            for layer in {None, signal.layer}:
                index.setdefault((signal.name, layer), []).append(signal)
        return index

    @cached_property
    def _layers(self) -> dict[str, LayerFacts]:
        return {layer.name: layer for layer in reversed(self.layers)}


def merge_missing(parts: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Join the reasons of several sources; the first one given for a name stays."""
    merged: dict[str, str] = {}
    for part in parts:
        for key, reason in part.items():
            merged.setdefault(key, reason)
    return merged
