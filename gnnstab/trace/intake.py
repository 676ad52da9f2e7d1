"""From what training threads post to rows of tables: numbered, given their level, and checked one by one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from gnnstab.records import Blind, Event, LayerFacts, Measure, SeriesKey, StepRow
from gnnstab.trace import codec
from gnnstab.trace.batch import Batch, Columns, Facts
from gnnstab.trace.mailbox import Mailbox
from gnnstab.trace.pooling import SHARED_SITES

FOREVER = 62
"""Level of a row that is never thinned out."""


class Intake:
    """Empties a mailbox into a batch and remembers what a new file would have to begin with."""

    def __init__(self, mailbox: Mailbox) -> None:
        self.batch = Batch()
        self.facts = Facts()
        """Everything known of the run as a whole."""

        self.malformed = 0
        """Rows that were left out because they were no rows."""

        self._mailbox = mailbox
        self._quantities: dict[tuple[Any, ...], int] = {}
        self._measures = 0
        self._records = -1
        self._record_step: int | None = None
        self._unusual: set[int] = set()
        self._kinds: dict[tuple[Any, ...], int] = {}

    def collect(self) -> None:
        """Move everything that waits into the batch.

        Rows are taken first: a series is posted before its first row, so its key is then among the facts.
        """
        self.batch.sites.extend(taken(self._mailbox.sites))
        self.batch.steps.extend(self._convert(taken(self._mailbox.steps), self._step))
        self.batch.measures.extend(self._convert(taken(self._mailbox.measures), self._measure))
        for fact in taken(self._mailbox.facts):
            self._sort_in(fact)
        self.facts.update(self.batch.facts)

    def note(self, key: str, value: str) -> None:
        """Put an entry of metadata into the batch, unless the trace says so already."""
        row = (codec.clean(key), codec.clean(value))
        if self.facts.meta.get(row[0]) != row:
            self.batch.facts.meta[row[0]] = row
            self.facts.meta[row[0]] = row

    def _convert(self, rows: Iterable[Any], convert: Callable[[Any], Columns]) -> list[Columns]:
        """Columns of the rows; one that cannot be converted must not keep the others out of the trace."""
        columns = []
        for row in rows:
            try:
                columns.append(convert(row))
            except (TypeError, ValueError, AttributeError, IndexError, OverflowError):
                self.malformed += 1
        return columns

    def _sort_in(self, fact: Any) -> None:
        facts = self.batch.facts
        if isinstance(fact, Event):
            self.batch.events.extend(self._convert([fact], codec.event_to_columns))
            return
        for row in self._convert([fact], _fact_to_columns):
            if isinstance(fact, LayerFacts):
                facts.layer[row[0]] = row
            elif isinstance(fact, Blind):
                facts.blind[row[0], row[1]] = row
            elif isinstance(fact[1], SeriesKey):
                facts.series[row[0]] = row
                if fact[1].site in SHARED_SITES:
                    self.batch.shared.add(row[0])
            else:
                facts.meta[row[0]] = row

    def _step(self, row: StepRow) -> Columns:
        columns = codec.step_to_columns(row)
        # Skipped steps and those with NaN or Inf are counted apart, so the first of each kind stays for ever.
        kind = (row.skipped, *map(_kind, (row.loss, row.grad_norm)))
        self._kinds[kind] = self._kinds.get(kind, -1) + 1
        return (columns[0], level_of(self._kinds[kind]), *columns[1:])

    def _measure(self, row: Measure) -> Columns:
        key = (codec.clean(row.layer), codec.clean(row.mode), int(row.call), codec.clean(row.name), int(row.head))
        step, value = codec.whole(row.step), float(row.value)
        detail = codec.clean(row.detail) if row.detail else None
        if key not in self._quantities:
            self._quantities[key] = len(self._quantities) + 1
            self.batch.facts.quantity[self._quantities[key]] = (self._quantities[key], *key)
        quantity = self._quantities[key]
        if step != self._record_step:
            self._record_step, self._records = step, self._records + 1
        level = level_of(self._records)
        if not math.isfinite(value) and quantity not in self._unusual:
            self._unusual.add(quantity)
            level = FOREVER
        self._measures += 1
        return (step, quantity, self._measures, level, value, detail)


def taken(queue: Any) -> list[Any]:
    """Everything that is in the queue now; others may append, or shorten it from the left, meanwhile."""
    items = []
    for _ in range(len(queue)):
        try:
            items.append(queue.popleft())
        except IndexError:
            break
    return items


def level_of(ordinal: int) -> int:
    """How long the row with this number, from 0, is kept: 0 for every second, 1 for every fourth, …; the first for ever."""
    return FOREVER if ordinal == 0 else (ordinal & -ordinal).bit_length() - 1


def _fact_to_columns(fact: Any) -> Columns:
    if isinstance(fact, LayerFacts):
        return codec.layer_to_columns(fact)
    if isinstance(fact, Blind):
        return (codec.clean(fact.layer), codec.clean(fact.site), codec.clean(fact.reason))
    first, second = fact
    if isinstance(second, SeriesKey):
        return (first, codec.clean(second.layer), codec.clean(second.mode), int(second.call), codec.clean(second.site))
    return (codec.clean(first), codec.clean(second))


def _kind(value: float | None) -> str:
    return "unknown" if value is None else "finite" if math.isfinite(value) else "non-finite"
