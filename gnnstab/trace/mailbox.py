"""Between the training threads and the writer thread: appending costs a fraction of a microsecond and never waits."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from gnnstab.records import Blind, Event, LayerFacts, Measure, SeriesKey, StepRow
from gnnstab.trace.batch import SiteItem
from gnnstab.trace.schema import EVENTS_LIMIT
from gnnstab.trace.store import Store

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


class Mailbox:
    """Queues filled by any number of threads and emptied by one."""

    def __init__(self) -> None:
        # Appending to and popping from a deque is atomic, so no lock is taken on the way of a training step.
        self.sites: deque[SiteItem] = deque()
        self.steps: deque[StepRow] = deque()
        self.measures: deque[Measure] = deque()
        self.facts: deque[LayerFacts | Blind | Event | tuple[int, SeriesKey] | tuple[str, str]] = deque()
        self.requests: deque[Request] = deque()
        self.wake = threading.Event()
        self.dropped = 0
        """Rows given up because the writer thread did not keep up; an estimate when several threads record."""

        self._events = 0

    def crowded(self) -> None:
        """Wake the writer at a quarter of the limit; at the limit, give up the oldest rows."""
        self.wake.set()
        try:
            while len(self.sites) > SITES_LIMIT:
                self.dropped += len(self.sites.popleft()[1])
        except IndexError:  # The writer thread emptied the queue in between.
            pass

    def post_rows(self, queue: deque[Any], rows: Sequence[Any]) -> None:
        """Append measures or step rows, bounded."""
        queue.extend(rows)
        if len(queue) > ROWS_LIMIT:
            self.wake.set()
            for _ in range(len(queue) - ROWS_LIMIT):
                queue.popleft()
                self.dropped += 1

    def post_event(self, event: Event) -> None:
        """Append an event and have it written at once; beyond the cap it is only counted."""
        self._events += 1
        if self._events <= EVENTS_LIMIT:
            self.facts.append(event)
            self.wake.set()

    def silence(self) -> None:
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
