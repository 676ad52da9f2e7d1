"""The live rules of a run: every step is handed to them as it ends."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from gnnstab.feed import Feed
from gnnstab.probe.attaching.stale_gradients import StaleGradients
from gnnstab.probe.buffering.step_writer import Layout
from gnnstab.probe.optimizer.next_update import UpdateWatch
from gnnstab.probe.optimizer.slope import SlopeWatch
from gnnstab.probe.recorder import Recorder
from gnnstab.records import Finding, SeriesKey, Signals, StepRow
from gnnstab.rules.beginning import Climb
from gnnstab.rules.gs601_learning_rate_too_high import LearningRateTooHigh
from gnnstab.rules.gs606_rate_jump import RateJump
from gnnstab.rules.gs610_stale_gradients import StaleGradients as KeptRule
from gnnstab.rules.live import LiveEngine
from gnnstab.trace import TraceWriter

_UNUSUAL = 4.0
"""× the gradient norm of the last recorded step: a smaller one is no news for rules that speak from 10 × on."""


_CLOSE = 100
"""Steps of the beginning that are all heard of, also those that are left out: medians and spikes begin there."""


class LiveWatch:
    """Hands the latest step of a recorder to the live rules.

    Args:
        recorder: Has recorded the step.
        writer: Is told the number format.
        feed: Streams every step that is looked at.
        updates: What the update of the step did to the output.
        slopes: Whether it overshot.
        stale: Whether steps use the gradients of those before.
    """

    def __init__(
        self,
        recorder: Recorder,
        writer: TraceWriter,
        feed: Feed,
        updates: UpdateWatch,
        slopes: SlopeWatch,
        stale: StaleGradients,
    ) -> None:
        self._recorder, self._writer, self._feed = recorder, writer, feed
        self._updates, self._slopes, self._stale = updates, slopes, stale
        self._engine = LiveEngine(usual=slopes.highest)
        self._climb = Climb(LearningRateTooHigh(), slopes.usual)
        self._precision = ""
        self._checked = -1
        self._usual, self._rate, self._heard = 0.0, math.inf, -1
        self._unheard: StepRow | None = None
        self._layout: Layout | None = None
        self._places: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        """Of the minima and maxima of all scores and the RMS of all outputs, in the columns of a step one after the other."""

        self._scores = 0
        self._keys: list[SeriesKey] = []

    @property
    def due(self) -> bool:
        """True when the live rules must hear of the latest step."""
        row = self._recorder.row
        if row is None or row.step == self._checked:
            return False
        if self._recorder.sent.layout.ids or self._news(row):
            return True
        self._unheard = row
        return False

    def _news(self, row: StepRow) -> bool:
        """True for a step that was left out and must be heard of; most are as the recorded ones beside them."""
        norm = row.grad_norm
        formats = self._recorder.state.formats
        if (formats is not None and formats.news) or self._slopes.settings:
            return True
        if row.step < _CLOSE or self._slopes.latest.step > self._heard or row.loss is not None or self._feed:
            return True
        if row.lr is not None and row.lr > self._rate:
            return True
        return norm is not None and not norm <= _UNUSUAL * self._usual

    def step(self) -> list[Finding]:
        """What is new in the latest step; nothing for one that was looked at before."""
        recorder, row = self._recorder, self._recorder.row
        if row is None or row.step == self._checked:
            return []
        before, self._unheard = self._unheard, None
        earlier = [] if before is None else self._engine.rate(before.step, before.lr)
        self._checked, self._heard = row.step, self._slopes.latest.step
        self._rate = math.inf if row.lr is None else row.lr
        layout, rows = recorder.sent.layout, recorder.sent.rows
        if row.grad_norm is not None and layout.ids:
            self._usual = row.grad_norm
        if self._feed:
            self._feed.row(row, layout.keys, rows)
        if layout is not self._layout and layout.ids:
            self._lay_out(layout)
        sizes = rows[:0, 2]
        if len(rows):
            picked, count = rows.T.reshape(-1).take(self._places), self._scores
            sizes = picked[count:]
            np.maximum(-picked[:count], sizes[:count], out=sizes[:count])
        rise, found = self._updates.rise, earlier
        if rise is not None and rise.step == row.step:
            found = found + self._engine.tried(rise, self._updates.moved(row.step))
        if (kept := self._stale.take()) is not None:
            found = [*found, KeptRule().told(kept)]
        if (formats := recorder.state.formats) is not None and formats.news:
            found = [*found, *self._engine.nearing(formats.news)]
            formats.news.clear()
        if self._slopes.settings:
            found = [*found, *(RateJump().beyond(row.step, one) for one in self._slopes.settings)]
            self._slopes.settings.clear()
        if row.loss is not None:
            found = [*found, *self._climb.loss(row.step, row.loss, row.lr)]
        return found + self._engine.update(
            row.step,
            self._keys if len(rows) else (),
            sizes,
            loss=row.loss,
            lr=row.lr,
            grad_norm=row.grad_norm,
            moved=self._updates.moved(row.step),
            overshoot=self._slopes.latest if self._heard >= 0 else None,
            skipped=row.skipped,
        )

    @property
    def recorded(self) -> Signals:
        """What is known of the run so far, for what goes wrong in it."""
        return self._engine.recorded()

    def loss(self) -> list[Finding]:
        """What is new where a loss came after its step was looked at."""
        row = self._recorder.row
        if row is None or row.step != self._checked or row.loss is None or self._recorder.state.open:
            return []
        climbed = self._climb.loss(row.step, row.loss, row.lr)
        return [*climbed, *self._engine.loss(row.step, row.loss, row.lr, row.skipped)]

    def _lay_out(self, layout: Layout) -> None:
        self._layout = layout
        self._set_precision()
        scores, outputs = (_rows_of(layout, site) for site in ("score", "output"))
        wide = len(layout.keys)
        places = (*scores, *(wide + i for i in scores), *(2 * wide + i for i in outputs))
        self._scores, self._places = len(scores), np.array(places, dtype=np.int64)
        self._keys = [layout.keys[i] for i in (*scores, *outputs)]

    def _set_precision(self) -> None:
        """Tell the trace and the live rules which number format the attention is computed in; asked when layers are new."""
        precision = self._recorder.notes.precision
        if precision != self._precision:
            self._precision = precision
            self._writer.meta("precision", precision)
            channels = {facts.name: facts.out_channels for facts in self._recorder.notes.facts() if facts.out_channels}
            self._engine = LiveEngine(precision=precision, channels=channels, usual=self._slopes.highest)


def _rows_of(layout: Layout, site: str) -> list[int]:
    """Rows of a site in training."""
    return [i for i, key in enumerate(layout.keys) if key.site == site and key.mode == "train"]
