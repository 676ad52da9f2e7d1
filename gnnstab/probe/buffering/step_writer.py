"""From slots to the rows of a trace."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from gnnstab.probe.buffering._totals import Totals
from gnnstab.probe.buffering.series_ids import SeriesIds
from gnnstab.probe.state import Queued
from gnnstab.records import Blind, Event, LayerFacts, Measure, SeriesKey, StepRow

_GRADIENTS = ("grad_output", "grad_input")
_LAYOUTS = 64
"""Layouts remembered; a run with more forgets them all and starts anew."""


class Writer(Protocol):
    """What the probe asks of a trace; `gnnstab.trace.TraceWriter` is one."""

    def meta(self, key: str, value: str) -> None:
        """Store or replace a fact of the run."""

    def layer(self, facts: LayerFacts) -> None:
        """Store or replace the facts of a layer."""

    def blind(self, blind: Blind) -> None:
        """Store a site that is not seen."""

    def series(self, key: SeriesKey) -> int:
        """The id of a series."""

    def sites(self, step: int, ids: Any, rows: Any) -> None:
        """Store rows (K, 5): minimum, maximum, rms, count, non_finite."""

    def measures(self, rows: Any) -> None:
        """Store full-tier numbers."""

    def step(self, row: StepRow) -> None:
        """Store one step."""

    def event(self, event: Event) -> None:
        """Store an event."""


class Layout(NamedTuple):
    """The series of one step, in the order of its rows."""

    ids: tuple[int, ...]
    keys: list[SeriesKey]
    activation_gradients: NDArray[np.int64]
    """Rows of ``grad_output`` and ``grad_input``."""

    weight_gradients: NDArray[np.int64]
    """Rows of ``weight_grad``."""


class StepRows(NamedTuple):
    """What one step handed to the trace."""

    layout: Layout
    rows: NDArray[np.float64]
    """(K, 5) minimum, maximum, rms, count, non_finite."""

    finite: bool
    """True when nothing in it is NaN or Inf."""

    gradient_norm: float | None
    """L2 norm over all parameter gradients, None without any."""


_NONE = np.empty(0, dtype=np.int64)
EMPTY = StepRows(Layout((), [], _NONE, _NONE), np.empty((0, 5)), True, None)
"""A step without rows."""


class StepWriter:
    """Hands the numbers of a step to a writer."""

    def __init__(self, writer: Writer, keys: SeriesIds) -> None:
        self._writer = writer
        self._keys = keys
        self._ids: list[int] = []
        self._layouts: dict[bytes, Layout] = {}
        self._last: tuple[NDArray[np.int64], Layout] = (_NONE, EMPTY.layout)
        self._said: dict[tuple[str, str], str] = {}

    def sites(self, step: int, totals: Totals, scale: float = 1.0) -> StepRows:
        """Hand over the light tier and say what went out; gradients of activations are divided by the loss scale."""
        if not len(totals.slots):
            return EMPTY
        layout = self._layout(totals.slots)
        rows, finite = totals.rows()
        if scale != 1.0:
            rows[layout.activation_gradients, :3] /= scale
        self._writer.sites(step, layout.ids, rows)
        weights = layout.weight_gradients
        norm = math.sqrt(np.add.reduce(totals.square.take(weights))) if len(weights) else None
        return StepRows(layout, rows, finite, norm)

    def measures(self, step: int, queued: Iterable[Queued]) -> None:
        """Read the full tier from the device and hand it over."""
        rows: list[Measure] = []
        for item in queued:
            value: Any = item.value.tolist()
            numbers = [(-1, float(value))] if item.head == -1 else list(enumerate(map(float, value)))
            details = [""] * len(numbers) if item.spread is None else [_histogram(one) for one in item.spread.tolist()]
            rows += [
                Measure(step, item.layer, item.mode, item.call, item.name, head, v, detail)
                for (head, v), detail in zip(numbers, details, strict=True)
            ]
        if rows:
            self._writer.measures(rows)

    def layers(self, facts: Iterable[LayerFacts], meta: Mapping[str, str]) -> None:
        """Hand over the facts of the layers, and those of the run."""
        for layer in facts:
            self._writer.layer(layer)
        for key, value in meta.items():
            self._writer.meta(key, value)

    def blinds(self, blinds: Iterable[Blind]) -> None:
        """Hand over what is not seen, each once."""
        for blind in blinds:
            if (blind.layer, blind.site) not in self._said:
                self._said[blind.layer, blind.site] = blind.reason
                self._writer.blind(blind)

    def _layout(self, slots: NDArray[np.int64]) -> Layout:
        """What the slots mean; the same few layouts come again at every step."""
        if slots is self._last[0]:
            return self._last[1]
        key = slots.tobytes()
        layout = self._layouts.get(key)
        if layout is None:
            for series in self._keys.all[len(self._ids) :]:
                self._ids.append(self._writer.series(series))
            if len(self._layouts) > _LAYOUTS:
                self._layouts.clear()
            layout = self._layouts[key] = self._new_layout(slots.tolist())
        self._last = (slots, layout)
        return layout

    def _new_layout(self, slots: list[int]) -> Layout:
        keys = [self._keys.all[slot] for slot in slots]
        activation = [i for i, key in enumerate(keys) if key.site in _GRADIENTS]
        weight = [i for i, key in enumerate(keys) if key.site == "weight_grad"]
        return Layout(
            tuple(self._ids[slot] for slot in slots),
            keys,
            np.array(activation, dtype=np.int64),
            np.array(weight, dtype=np.int64),
        )


def _histogram(spread: list[float]) -> str:
    """The detail of a head's spread of scores; ``""`` where its range is empty or not finite."""
    low, high, *counts = spread
    if not -math.inf < low < high < math.inf:
        return ""
    return json.dumps({"histogram": {"low": low, "high": high, "counts": [int(c) for c in counts]}})
