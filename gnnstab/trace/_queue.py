"""Between the training threads and the writer thread: appending costs a fraction of a microsecond and never waits."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from gnnstab.records import Event, Measure, StepRow
from gnnstab.trace import _codec as codec
from gnnstab.trace._resolution import FOREVER, SHARED_SITES, SiteItem, level_of
from gnnstab.trace._schema import EVENTS_LIMIT, EVENTS_TEXT

if TYPE_CHECKING:
    from gnnstab.trace._store import Store

SITES_LIMIT = 16_384
"""Calls of `TraceWriter.sites` that may wait, about 20 MB at 20 series; beyond it the oldest are dropped."""

ROWS_LIMIT = 65_536
"""Measures or step rows that may wait."""


class Request:
    """Something a training thread asks the writer thread to do, and waits for."""

    def __init__(self, action: Callable[[Store], Any]) -> None:
        self._action = action
        self._done = threading.Event()
        self._result: Any = None
        self._error: Exception | None = None

    def run(self, store: Store) -> None:
        """Carry it out, on the writer thread."""
        try:
            self._result = self._action(store)
        except Exception as error:  # Handed to the thread that asked.
            self._error = error
        self._done.set()

    def wait(self, alive: Callable[[], bool]) -> Any:
        """Wait for the result, on the thread that asked; None when the writer thread has ended without it."""
        while not self._done.wait(0.2):
            if not alive() and not self._done.is_set():
                return None
        if self._error is not None:
            raise self._error
        return self._result


class WriteQueue:
    """Queues filled by any number of threads and emptied by one."""

    def __init__(self) -> None:
        # Appending to and popping from a deque is atomic, so no lock is taken on the way of a training step.
        self.sites: deque[SiteItem] = deque()
        self.steps: deque[StepRow] = deque()
        self.measures: deque[Measure] = deque()
        self.facts: deque[tuple[str, Any]] = deque()
        """(table, record): `LayerFacts`, `Blind`, `Event`, (id, `SeriesKey`), or (key, value) of the metadata."""

        self.requests: deque[Request] = deque()
        self.wake = threading.Event()
        self.dropped = 0
        """Rows given up because the writer thread did not keep up; an estimate when several threads record."""

        self._events = 0

    def drop_oldest(self) -> None:
        """Wake the writer at a quarter of the limit; at the limit, give up the oldest rows."""
        self.wake.set()
        try:
            while len(self.sites) > SITES_LIMIT:
                self.dropped += len(self.sites.popleft()[1])
        except IndexError:  # The writer thread emptied the queue in between.
            pass

    def put_rows(self, queue: deque[Any], rows: Sequence[Any]) -> None:
        """Append measures or step rows, bounded."""
        queue.extend(rows)
        if len(queue) > ROWS_LIMIT:
            self.wake.set()
            for _ in range(len(queue) - ROWS_LIMIT):
                queue.popleft()
                self.dropped += 1

    def put_event(self, event: Event) -> None:
        """Append an event and have it written at once; beyond the cap it is only counted."""
        self._events += 1
        if self._events <= EVENTS_LIMIT:
            self.facts.append(("event", event))
            self.wake.set()

    def close(self) -> None:
        """Take nothing from now on; for the copy in a forked child, where no thread would ever empty the queues."""
        self.sites, self.steps, self.measures, self.facts = (deque(maxlen=0) for _ in range(4))

    @property
    def events_dropped(self) -> int:
        """Events beyond the cap."""
        return max(0, self._events - EVENTS_LIMIT)

    def ask(self, action: Callable[[Store], Any]) -> Request:
        """Queue a request and wake the writer."""
        request = Request(action)
        self.requests.append(request)
        self.wake.set()
        return request


Columns = tuple[Any, ...]
"""One row of a table, in the order of the table's definition."""


Facts = dict[str, dict[Any, Columns]]
"""Table → rows that say something of the run as a whole, by their key; a newer row of the same key replaces the older."""


def update(facts: Facts, newer: Facts) -> None:
    """Take over everything from ``newer``."""
    for table, rows in newer.items():
        facts.setdefault(table, {}).update(rows)


@dataclass
class Batch:
    """Rows on their way into the store; the oldest are given up first when it cannot be written."""

    facts: Facts = field(default_factory=dict)
    shared: set[int] = field(default_factory=set)
    """Ids of the series of `gnnstab.trace._resolution.SHARED_SITES`."""

    events: deque[Columns] = field(default_factory=deque)
    sites: deque[SiteItem] = field(default_factory=deque)
    steps: deque[Columns] = field(default_factory=deque)
    measures: deque[Columns] = field(default_factory=deque)

    def __bool__(self) -> bool:
        return bool(self.facts or self.events or self.sites or self.steps or self.measures)

    def count(self) -> int:
        """Rows of numbers, those of all series of a step counted apart."""
        return len(self.steps) + len(self.measures) + sum(len(ids) for _, ids, _ in self.sites)

    def portion(self, rows: int) -> Batch:
        """Take out the facts and events, and of the other kinds the oldest, about ``rows`` rows of each."""
        part = Batch(self.facts, self.shared, self.events)
        self.facts, self.events = {}, deque()
        for source, target in ((self.steps, part.steps), (self.measures, part.measures)):
            target.extend(source.popleft() for _ in range(min(rows, len(source))))
        taken = 0
        while self.sites and taken < rows:
            taken += len(self.sites[0][1])
            part.sites.append(self.sites.popleft())
        return part

    def put_back(self, part: Batch) -> None:
        """Undo `portion`."""
        update(part.facts, self.facts)
        self.facts = part.facts
        for name in ("events", "sites", "steps", "measures"):
            getattr(self, name).extendleft(reversed(getattr(part, name)))

    def shrink(self, sites: int, rows: int) -> int:
        """Drop the oldest beyond ``sites`` calls and ``rows`` rows of each other kind; return how many rows that cost."""
        dropped = 0
        while len(self.sites) > sites:
            dropped += len(self.sites.popleft()[1])
        for queue in (self.steps, self.measures, self.events):
            while len(queue) > rows:
                queue.popleft()
                dropped += 1
        return dropped


class RowEncoder:
    """Empties the queue into a batch of rows: numbered, given their level and checked one by one; remembers what a new file would have to begin with."""

    def __init__(self, queue: WriteQueue) -> None:
        self.batch = Batch()
        self.facts: Facts = {}
        """Everything known of the run as a whole."""

        self.malformed = 0
        """Rows that were left out because they were no rows."""

        self.events_dropped = self._event_text = 0
        self._queue = queue
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
        self.batch.sites.extend(taken(self._queue.sites))
        self.batch.steps.extend(self._convert(taken(self._queue.steps), self._step))
        self.batch.measures.extend(self._convert(taken(self._queue.measures), self._measure))
        for table, fact in taken(self._queue.facts):
            for row in self._convert([fact], _TO_COLUMNS[table]):
                self._sort_in(table, fact, row)
        update(self.facts, self.batch.facts)

    def note(self, key: str, value: str) -> None:
        """Put an entry of metadata into the batch, unless the trace says so already."""
        row = (codec.clean(key), codec.clean(value))
        if self.facts.get("meta", {}).get(row[0]) != row:
            for facts in (self.batch.facts, self.facts):
                update(facts, {"meta": {row[0]: row}})

    def _convert(self, rows: Iterable[Any], convert: Callable[[Any], Columns]) -> list[Columns]:
        """Columns of the rows; one that cannot be converted must not keep the others out of the trace."""
        columns = []
        for row in rows:
            try:
                columns.append(convert(row))
            except (TypeError, ValueError, AttributeError, IndexError, OverflowError):
                self.malformed += 1
        return columns

    def _sort_in(self, table: str, fact: Any, row: Columns) -> None:
        if table == "event":
            self._event_text += sum(len(value) for value in row if isinstance(value, str))
            if self._event_text <= EVENTS_TEXT:
                self.batch.events.append(row)
            else:
                self.events_dropped += 1
            return
        if table == "series" and fact[1].site in SHARED_SITES:
            self.batch.shared.add(row[0])
        self.batch.facts.setdefault(table, {})[row[:2] if table == "blind" else row[0]] = row

    def _step(self, row: StepRow) -> Columns:
        columns = codec.to_columns(codec.STEP, row)
        # Skipped steps and those with NaN or Inf are counted apart, so the first of each kind stays for ever.
        kind = (row.skipped, _kind(row.loss), _kind(row.grad_norm))
        self._kinds[kind] = self._kinds.get(kind, -1) + 1
        return (columns[0], level_of(self._kinds[kind]), *columns[1:])

    def _measure(self, row: Measure) -> Columns:
        quantity = self._quantities.get(row[1:6])  # The same few come again at every full step.
        if quantity is None:
            quantity = self._quantity(row)
        step, value = codec.whole(row.step), float(row.value)
        detail = codec.clean(row.detail) if row.detail else None
        if step != self._record_step:
            self._record_step, self._records = step, self._records + 1
        level = level_of(self._records)
        if not math.isfinite(value) and quantity not in self._unusual:
            self._unusual.add(quantity)
            level = FOREVER
        self._measures += 1
        return (step, quantity, self._measures, level, value, detail)

    def _quantity(self, row: Measure) -> int:
        clean = codec.clean
        key = (clean(row.layer), clean(row.mode), int(row.call), clean(row.name), int(row.head))
        if key not in self._quantities:
            self._quantities[key] = number = len(self._quantities) + 1
            self.batch.facts.setdefault("quantity", {})[number] = (number, *key)
        return self._quantities[key]


def taken(queue: Any) -> list[Any]:
    """Everything that is in the queue now; others may append, or shorten it from the left, meanwhile."""
    items = []
    for _ in range(len(queue)):
        try:
            items.append(queue.popleft())
        except IndexError:
            break
    return items


_TO_COLUMNS: dict[str, Callable[[Any], Columns]] = {
    "meta": lambda pair: (codec.clean(pair[0]), codec.clean(pair[1])),
    "layer": codec.layer_to_columns,
    "blind": partial(codec.to_columns, codec.BLIND),
    "series": lambda pair: (pair[0], *codec.to_columns(codec.SERIES, pair[1])),
    "event": partial(codec.to_columns, codec.EVENT),
}
"""Table of a fact → how it becomes a row."""


def _kind(value: float | None) -> str:
    return "unknown" if value is None else "finite" if math.isfinite(value) else "non-finite"
