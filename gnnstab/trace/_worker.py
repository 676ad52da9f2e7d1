"""The thread that owns the file: it writes what the training threads post, and bears every failure of the store."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from datetime import datetime, timezone

from gnnstab.errors import TraceError
from gnnstab.trace._queue import ROWS_LIMIT, SITES_LIMIT, Batch, RowEncoder, WriteQueue, update
from gnnstab.trace._resolution import thin
from gnnstab.trace._store import Store

FILL = 0.75
"""Share of the budget at which old steps are thinned out; the rest is room for the journal and for what arrives meanwhile."""

FILE_TROUBLE = (sqlite3.OperationalError, sqlite3.ProgrammingError, OSError, TraceError)
"""Failures that lie with the file, so that the same rows may be written later. A connection that could not be opened
again shows as a ProgrammingError."""

PORTION = 4096
"""Bytes of budget per row of one transaction, so that a transaction, and with it the journal, is a small share of it."""

LONGEST_PAUSE = 30.0
"""Seconds between two attempts to write to a file that refuses."""


class Trouble:
    """The last failure of the store; the first one is reported to whoever asked for it."""

    def __init__(self, on_failure: Callable[[str], None] | None) -> None:
        self.message: str | None = None
        self._on_failure = on_failure

    def report(self, message: str) -> None:
        """Keep the message; never raises."""
        self.message = " ".join(message.split())
        callback, self._on_failure = self._on_failure, None
        if callback is not None:
            try:
                callback(self.message)
            except Exception as error:  # Recording goes on whatever the callback does.
                self.message += f" (on_failure raised {error!r})"


class Worker:
    """Everything but `start` runs on the writer thread."""

    def __init__(
        self, path: str | None, budget: int, flush_seconds: float, queue: WriteQueue, trouble: Trouble
    ) -> None:
        self._budget, self._flush_seconds = budget, flush_seconds
        self._queue, self._trouble = queue, trouble
        self._encoder = RowEncoder(queue)
        self._trigger = FILL * budget
        self._portion = budget // PORTION
        self._failures, self._not_before = 0, 0.0
        self._dropped = self._stored = 0
        self._stopping = False
        self._ready = threading.Event()
        self._refused: Exception | None = None
        self.kept: sqlite3.Connection | None = None
        """After its end a trace in memory, and one whose last rows the file did not take."""

        self.path = path
        """Where the trace is now: somewhere else when another file took its place."""

    def start(self) -> threading.Thread:
        """Open the trace on a thread of its own; raises `TraceError` when it cannot be opened, or no thread starts."""
        thread = threading.Thread(target=self._run, name="gnnstab-trace", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise TraceError(
                f"{self.path or 'in-memory trace'}: no thread could be started to write it ({error})"
            ) from error
        while not self._ready.wait(0.5):
            if not thread.is_alive():
                self._trouble.report(f"{self.path or 'in-memory trace'}: the thread that writes it has ended")
                break
        if self._refused is not None:
            raise self._refused
        return thread

    def snapshot(self, store: Store) -> sqlite3.Connection | None:
        """A copy of a trace that its file does not hold, or not in full; None where the file holds it all."""
        if self.path is None:
            return store.snapshot()
        try:
            return store.with_rows(self._encoder.batch) if self._encoder.batch else None
        except sqlite3.Error:
            return None  # The file is gone or damaged, which whoever opens it is told.

    def stop(self) -> None:
        """End the thread after this round; asked for through a request."""
        self._stopping = True

    def _run(self) -> None:
        # The store lives in this frame alone: after a fork the child has no such thread, so nothing there can close,
        # or write to, the connection of its parent.
        try:
            store = Store(self.path, self._budget)
        except Exception as error:  # Raised again in `start`, on the thread that asked.
            self._refused = error
            self._ready.set()
            return
        try:
            self._live(store)
        except Exception as error:  # Told by `failure`; whoever waits for this thread sees that it has ended.
            self._trouble.report(f"{self.path or 'in-memory trace'}: recording has ended ({error!r})")
        finally:
            self._ready.set()

    def _live(self, store: Store) -> None:
        self._queue.facts.append(("meta", ("journal", store.journal.label)))
        self._serve(store)
        self._ready.set()
        pause = self._flush_seconds * store.journal.patience
        while not self._stopping:
            self._queue.wake.wait(pause)
            self._serve(store)
        self._end(store)

    def _serve(self, store: Store) -> None:
        """One round: write what waits, then answer those who wait for it."""
        self._queue.wake.clear()
        requests = [self._queue.requests.popleft() for _ in range(len(self._queue.requests))]
        try:
            self._collect()
            if self._encoder.batch and (requests or time.monotonic() >= self._not_before):
                self._write(store)
        except Exception as error:  # A thread that ends would take all further rows with it.
            self._trouble.report(f"{self.path or 'in-memory trace'}: rows were given up ({error!r})")
        for request in requests:
            request.run(store)

    def _collect(self) -> None:
        self._encoder.collect()
        losses = {
            "dropped.rows": self._queue.dropped + self._dropped,
            "dropped.events": self._queue.events_dropped + self._encoder.events_dropped,
            "malformed.rows": self._encoder.malformed,
        }
        for name, count in losses.items():
            if count:
                self._encoder.note(name, str(count))

    def _write(self, store: Store) -> None:
        batch = self._encoder.batch
        while batch:
            portion = Batch()
            try:
                if store.displaced():
                    self._begin_anew(store)
                portion = batch.portion(self._portion)
                count = portion.count()
                self._encoder.malformed += store.write(portion)
                self._stored += count
                self._keep_budget(store)
            except Exception as error:  # No failure of the store may reach the training.
                batch.put_back(portion)
                self._failed(store, error)
                return
            self._failures, self._not_before = 0, 0.0

    def _begin_anew(self, store: Store, *, damaged: bool = False) -> None:
        """Go on in an empty file, which says what is missing in it: a reader must not take it for the whole run."""
        found = store.begin_anew(damaged=damaged)
        self._trouble.report(f"{self.path}: the trace {found}; a new one begins as {store.path}")
        self.path, self._trigger = store.path, FILL * self._budget
        self._dropped, self._stored = self._dropped + self._stored, 0
        update(self._encoder.batch.facts, self._encoder.facts)
        self._encoder.note("dropped.rows", str(self._queue.dropped + self._dropped))
        self._encoder.note("failure", self._trouble.message or "")

    def _failed(self, store: Store, error: Exception) -> None:
        self._failures += 1
        self._not_before = time.monotonic() + min(LONGEST_PAUSE, self._flush_seconds * 2**self._failures)
        if not isinstance(error, FILE_TROUBLE) and type(error) is not sqlite3.DatabaseError:
            # The rows themselves are at fault, and would be again at every attempt.
            self._dropped += self._encoder.batch.shrink(0, 0)
            self._trouble.report(f"{store.path or 'in-memory trace'}: rows were given up ({error!r})")
            return
        self._dropped += self._encoder.batch.shrink(SITES_LIMIT, ROWS_LIMIT)
        self._trouble.report(
            f"{store.path or 'in-memory trace'}: cannot be written ({error}); the training goes on, "
            "new rows wait in memory and the oldest of them are dropped when that is full"
        )
        # Not an operational error: the file itself is damaged.
        if store.path is not None and type(error) is sqlite3.DatabaseError:
            try:
                self._begin_anew(store, damaged=not store.displaced())
            except Exception as further:  # The next attempt comes after the pause.
                self._trouble.report(f"{store.path}: cannot be written ({error}), nor begun anew ({further})")

    def _keep_budget(self, store: Store) -> None:
        before = store.live_bytes()
        if before < self._trigger:
            return
        thin(store.connection, self._portion)
        if store.live_bytes() > 0.95 * before:
            thin(store.connection, self._portion, thorough=True)
        # Without this, a trace that cannot shrink further would be thinned again on every flush.
        self._trigger = max(FILL * self._budget, 1.1 * store.live_bytes())

    def _end(self, store: Store) -> None:
        self._collect()
        if self._trouble.message:
            self._encoder.note("failure", self._trouble.message)
        self._encoder.note("closed", datetime.now(timezone.utc).isoformat(timespec="seconds"))
        self._write(store)
        if self.path is None:
            self.kept = store.connection
            return
        try:
            if self._encoder.batch:
                self._encoder.note("failure", self._trouble.message or "")
                self.kept = self.snapshot(store)
            store.close()
        except Exception as error:  # No failure of the store may reach the training.
            self._trouble.report(f"{store.path}: cannot be closed ({error})")
