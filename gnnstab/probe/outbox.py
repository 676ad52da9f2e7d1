"""From slots to the rows of a trace."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np

from gnnstab.probe.keys import Keys
from gnnstab.probe.state import Queued
from gnnstab.probe.totals import Totals
from gnnstab.records import Blind, Event, LayerFacts, Measure, SeriesKey, StepRow

_GRADIENTS = ("grad_output", "grad_input")


class Writer(Protocol):
    """What the probe asks of a trace; `gnnstab.trace.TraceWriter` is one."""

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


class Outbox:
    """Hands the numbers of a step to a writer."""

    def __init__(self, writer: Writer, keys: Keys) -> None:
        self._writer = writer
        self._keys = keys
        self._ids: list[int] = []
        self._scaled: list[bool] = []
        self._layouts: dict[bytes, tuple[tuple[int, ...], np.ndarray]] = {}
        self._said: dict[tuple[str, str], str] = {}

    def sites(self, step: int, totals: Totals, scale: float = 1.0) -> None:
        """Hand over the light tier; gradients are divided by the loss scale."""
        if not len(totals.slots):
            return
        ids, gradient = self._layout(totals.slots)
        rows = np.empty((len(ids), 5))
        rows[:, 0] = totals.minimum
        rows[:, 1] = totals.maximum
        rows[:, 2] = totals.rms()
        rows[:, 3] = totals.count
        rows[:, 4] = np.where(totals.finite(), 0.0, -1.0)
        if scale != 1.0:
            rows[gradient, :3] /= scale
        self._writer.sites(step, ids, rows)

    def measures(self, step: int, queued: Iterable[Queued]) -> None:
        """Read the full tier from the device and hand it over."""
        rows: list[Measure] = []
        for item in queued:
            value = item.value.detach().double().cpu()
            numbers = [(-1, float(value))] if item.head == -1 else list(enumerate(value.tolist()))
            rows += [Measure(step, item.layer, item.mode, item.call, item.name, head, v) for head, v in numbers]
        if rows:
            self._writer.measures(rows)

    def blinds(self, blinds: Iterable[Blind]) -> None:
        """Hand over what is not seen, each once."""
        for blind in blinds:
            if (blind.layer, blind.site) not in self._said:
                self._said[blind.layer, blind.site] = blind.reason
                self._writer.blind(blind)

    def _layout(self, slots: np.ndarray) -> tuple[tuple[int, ...], np.ndarray]:
        """Ids of the slots and which of them are gradients; the same few layouts come again at every step."""
        key = slots.tobytes()
        layout = self._layouts.get(key)
        if layout is None:
            for series in self._keys.all[len(self._ids) :]:
                self._ids.append(self._writer.series(series))
                self._scaled.append(series.site in _GRADIENTS)
            if len(self._layouts) > 64:
                self._layouts.clear()
            gradient = np.array([self._scaled[slot] for slot in slots], dtype=bool)
            layout = self._layouts[key] = (tuple(self._ids[slot] for slot in slots), gradient)
        return layout
