"""`TraceWriter`: records a run without ever making the training wait or fail."""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone

from gnnstab import __version__
from gnnstab.errors import TraceError, UsageError
from gnnstab.records import Blind, Event, LayerFacts, Measure, SeriesKey, StepRow
from gnnstab.trace._queue import SITES_LIMIT, WriteQueue
from gnnstab.trace._reader import Trace
from gnnstab.trace._resolution import SiteRows
from gnnstab.trace._worker import Trouble, Worker

SMALLEST_BUDGET = 256 * 1024
"""Bytes; below it the tables and indices alone would fill a trace."""

LARGEST_BUDGET = 128 * 2**20
"""Bytes; half of what a reader takes from a stranger, so that whatever is written can be read."""

_LIVE: weakref.WeakSet[TraceWriter] = weakref.WeakSet()


class TraceWriter:
    """Writes one trace.

    ``path`` is the file, or None for a trace in memory. A trace that is already there is kept: it is renamed to
    ``run.1.gnnstab`` (the next free number) before the new one begins; anything that is no trace is refused.
    ``budget`` bounds the file in bytes: when it is reached, the resolution of old steps halves and extremes stay.
    ``flush_seconds`` is the longest time that a row waits for the disk. ``on_failure`` is called once, from the writer
    thread, with one line when the store fails; every later failure is in `failure`.

    Raises `TraceError` when the path cannot be written, holds something else, or is being written by another process.
    Nothing raises after that: rows that cannot be written wait in memory, bounded, the oldest are dropped and counted
    in the trace's own metadata (``dropped.rows``).
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        *,
        budget: int = 64 * 2**20,
        meta: Mapping[str, str] | None = None,
        flush_seconds: float = 1.0,
        on_failure: Callable[[str], None] | None = None,
    ) -> None:
        if not SMALLEST_BUDGET <= budget <= LARGEST_BUDGET:
            raise UsageError(
                f"the budget of a trace is {budget} bytes; give at least {SMALLEST_BUDGET} and at most {LARGEST_BUDGET}"
            )
        if not flush_seconds > 0:
            raise UsageError(f"flush_seconds is {flush_seconds}; give a positive number of seconds")
        self.path = None if path is None else os.path.abspath(os.fsdecode(path))
        self._queue = WriteQueue()
        self._sites = self._queue.sites
        self._trouble = Trouble(on_failure)
        self._ids: dict[SeriesKey, int] = {}
        self._guard = threading.Lock()
        self._closed = False
        self.forked = False
        """True in a process that was forked from the one that records: nothing is recorded there."""

        self._worker = Worker(self.path, budget, flush_seconds, self._queue, self._trouble)
        about = {
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "gnnstab": __version__,
            "python": sys.version.split()[0],
            "budget": str(budget),
            "flush_seconds": str(flush_seconds),
        }
        for key, value in {**about, **(meta or {})}.items():
            self.meta(key, value)
        self._thread = self._worker.start()
        # Runs at garbage collection and at interpreter exit, while the writer thread still lives.
        self._finalizer = weakref.finalize(self, _finish, self._queue, self._worker, self._thread)
        _LIVE.add(self)

    @property
    def failure(self) -> str | None:
        """The last failure of the store in one line, or None; it stays when recording has recovered."""
        return self._trouble.message

    def series(self, key: SeriesKey) -> int:
        """The id of a stream of site statistics, the same for every call with this key."""
        found = self._ids.get(key)
        if found is not None:
            return found
        with self._guard:
            if key not in self._ids:
                self._queue.facts.append(("series", (len(self._ids) + 1, key)))
                self._ids[key] = len(self._ids) + 1
            return self._ids[key]

    def sites(self, step: int, ids: Sequence[int], rows: SiteRows) -> None:
        """Hand over the light-tier statistics of one step.

        ``ids`` has shape (K,); ``rows`` holds per id minimum, maximum, rms, count, non_finite (-1: at least one), as
        tuples or as a float64 array (K, 5). Both belong to the writer from here on and must not be changed. Several
        calls for one step are pooled.
        """
        self._sites.append((step, ids, rows))
        waiting = len(self._sites)
        if waiting == SITES_LIMIT // 4 or waiting > SITES_LIMIT:
            self._queue.drop_oldest()

    def measures(self, rows: Iterable[Measure]) -> None:
        """Hand over full-tier numbers."""
        self._queue.put_rows(self._queue.measures, list(rows))

    def step(self, row: StepRow) -> None:
        """Hand over one training step; a step that is given twice keeps its last row."""
        self._queue.put_rows(self._queue.steps, (row,))

    def event(self, event: Event) -> None:
        """Hand over an event; it is written at once, by the writer thread."""
        self._queue.put_event(event)

    def layer(self, facts: LayerFacts) -> None:
        """Record or replace the facts of a layer."""
        self._queue.facts.append(("layer", facts))

    def blind(self, blind: Blind) -> None:
        """Record a site that cannot be observed."""
        self._queue.facts.append(("blind", blind))

    def meta(self, key: str, value: str) -> None:
        """Record or replace one entry of the trace's metadata."""
        self._queue.facts.append(("meta", (str(key), str(value))))

    def flush(self) -> None:
        """Wait until everything handed over so far is written, or has failed to be (see `failure`)."""
        if not self._closed and threading.current_thread() is not self._thread:
            self._queue.ask(lambda store: None).wait(self._thread.is_alive)

    def read(self) -> Trace:
        """Everything recorded so far, as an independent snapshot; also after `close`. It holds rows that the file did not take too.

        Raises `TraceError` when the file can no longer be read, and in a process that was forked from the one that records.
        """
        if self.forked:
            raise TraceError("the trace belongs to the process that recorded it, not to its forked child")
        copy = self._copy()
        return Trace.open(self._worker.path or self.path or "") if copy is None else Trace.of_connection(copy)

    def close(self) -> None:
        """Write what waits and end the trace; safe to call again."""
        if not self._closed:
            self._closed = True
            self._finalizer()
            self._queue.close()
            self._sites = self._queue.sites

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def _copy(self) -> sqlite3.Connection | None:
        if not self._closed:
            copy: sqlite3.Connection | None = self._queue.ask(self._worker.snapshot).wait(self._thread.is_alive)
            return copy
        if self._worker.kept is None:
            return None
        copy = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        self._worker.kept.backup(copy)
        return copy

    def _silence(self) -> None:
        """Make the copy of this writer in a forked child inert; it touches no lock, which the parent may have held."""
        self._finalizer.detach()
        self._closed = self.forked = True
        self._queue = WriteQueue()
        self._queue.close()
        self._sites = self._queue.sites
        self._trouble = Trouble(None)
        self._trouble.report("recording stopped in this process: it was forked from the one that writes the trace")


def _finish(queue: WriteQueue, worker: Worker, thread: threading.Thread) -> None:
    if threading.current_thread() is thread:
        # The garbage collector may run on any thread, on this one too, which cannot wait for itself.
        worker.stop()
        return
    queue.ask(lambda store: worker.stop()).wait(thread.is_alive)
    thread.join()


def _after_fork() -> None:
    for writer in list(_LIVE):
        writer._silence()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
