"""The live rules over a run: which steps they are asked about, and what of a step they are handed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gnnstab.rules.live import LiveEngine

if TYPE_CHECKING:
    from gnnstab.feed import Feed
    from gnnstab.probe.buffering.step_writer import Layout
    from gnnstab.probe.optimizer.next_update import UpdateWatch
    from gnnstab.probe.optimizer.slope import SlopeWatch
    from gnnstab.probe.recorder import Recorder
    from gnnstab.records import Finding, SeriesKey

_UNUSUAL = 4.0
"""× the gradient norm of the last recorded step; no live rule speaks below 10 ×, so a smaller one need not be shown to them."""


class LiveChecks:
    """Hands the steps of a recorder to the live rules, and to the feed of the sinks."""

    def __init__(self, recorder: Recorder, feed: Feed, updates: UpdateWatch, slopes: SlopeWatch) -> None:
        self._recorder, self._feed, self._updates, self._slopes = recorder, feed, updates, slopes
        self._engine = LiveEngine()
        self._precision = ""
        self._checked_step = -1
        self._usual_norm = 0.0
        self._layout: Layout | None = None
        self._rows = np.empty(0, dtype=np.int64)
        self._scores = 0
        self._keys: list[SeriesKey] = []

    def has_news(self) -> bool:
        """True when the rules must hear of the step; most steps that were left out are as the recorded ones beside them."""
        row = self._recorder.row
        if row is None or row.step == self._checked_step:
            return False
        if self._recorder.sent.layout.ids or self._feed or row.loss is not None:
            return True
        return row.grad_norm is not None and not row.grad_norm <= _UNUSUAL * self._usual_norm

    def run(self) -> list[Finding]:
        """What the rules find in the step that was handed over last."""
        row, (layout, rows, _, _) = self._recorder.row, self._recorder.sent
        if row is None or row.step == self._checked_step:
            return []
        self._checked_step = row.step
        if row.grad_norm is not None and layout.ids:
            self._usual_norm = row.grad_norm
        if self._feed:
            self._feed.row(row, layout.keys, rows)
        if layout is not self._layout and layout.ids:
            self._look_at(layout)
        sizes = rows[:0, 2]
        if len(rows):
            live = rows.take(self._rows, axis=0)
            sizes = live[:, 2]
            np.maximum(-live[: self._scores, 0], live[: self._scores, 1], out=sizes[: self._scores])
        return self._engine.update(
            row.step,
            self._keys if len(rows) else (),
            sizes,
            loss=row.loss,
            lr=row.lr,
            grad_norm=row.grad_norm,
            moved=self._updates.moved(row.step),
            overshoot=self._slopes.latest if self._slopes.latest[0] >= 0 else None,
            skipped=row.skipped,
        )

    def late_loss(self) -> list[Finding]:
        """What the rules find in a loss that came after its step was looked at."""
        row = self._recorder.row
        if row is None or row.step != self._checked_step or row.loss is None or self._recorder.state.open:
            return []
        return self._engine.loss(row.step, row.loss, row.lr)

    def _look_at(self, layout: Layout) -> None:
        """New series: which of them the rules go by, and in which number format the attention is computed."""
        self._layout = layout
        scores, outputs = (
            [i for i, key in enumerate(layout.keys) if key.site == site and key.mode == "train"]
            for site in ("score", "output")
        )
        self._scores, self._rows = len(scores), np.array([*scores, *outputs], dtype=np.int64)
        self._keys = [layout.keys[i] for i in self._rows]
        notes = self._recorder.notes
        if notes.precision != self._precision:
            self._precision = notes.precision
            self._recorder.writer.meta("precision", self._precision)
            channels = {facts.name: facts.out_channels for facts in notes.facts() if facts.out_channels}
            self._engine = LiveEngine(precision=self._precision, channels=channels)
