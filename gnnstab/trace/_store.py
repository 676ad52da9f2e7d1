"""The file that a writer fills: opened safely, written in transactions, begun anew when it is taken away."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gnnstab.errors import TraceError
from gnnstab.trace import _schema as schema
from gnnstab.trace._codec import EVENT
from gnnstab.trace._companions import COMPANIONS, address
from gnnstab.trace._filesystem import network_type_here
from gnnstab.trace._lock import WriterLock
from gnnstab.trace._paths import free_numbered, move_trace, remove_trace
from gnnstab.trace._queue import Batch, Columns
from gnnstab.trace._resolution import NON_FINITE, PART, OpenBuckets, gather, transaction

if TYPE_CHECKING:
    from numpy.typing import NDArray

PAGE = 4096
VARIABLES = 32_000 if sqlite3.sqlite_version_info >= (3, 32) else 960
"""Parameters per statement, below SQLite's own limits of 32 766 and 999."""

AT_ONCE = (32, 8, 1)
"""Rows per INSERT.

Python takes its global lock back after every single statement. With one row per statement the writer thread would wait
for the training thread thousands of times per flush; with many it waits a few times, and costs less than half. A few
fixed sizes, so that no statement is parsed twice.
"""

MANY_AT_ONCE = (128, *AT_ONCE)
"""The same of statistics, of which a run that records every step has thousands a second."""

# A step whose rows arrive apart, or late, is pooled with what is there, never overwritten.
MERGE = """ ON CONFLICT (level, step, series, part) DO UPDATE SET
    rms = CASE WHEN rms IS NULL OR excluded.rms IS NULL THEN NULL
          WHEN count + excluded.count = 0 OR max(rms, excluded.rms) IN (0, 9e999) THEN max(rms, excluded.rms)
          ELSE max(rms, excluded.rms) * sqrt((count * (rms / max(rms, excluded.rms)) * (rms / max(rms, excluded.rms))
             + excluded.count * (excluded.rms / max(rms, excluded.rms)) * (excluded.rms / max(rms, excluded.rms)))
             / (count + excluded.count)) END,
    span = CASE WHEN level = 0 THEN max(span, excluded.span) ELSE span + excluded.span END, count = count + excluded.count,
    minimum = min(minimum, excluded.minimum), maximum = max(maximum, excluded.maximum),
    non_finite = CASE WHEN min(non_finite, excluded.non_finite) < 0 THEN -1 ELSE non_finite + excluded.non_finite END"""

_KEPT_OPEN: list[sqlite3.Connection] = []


class Journal(NamedTuple):
    """How SQLite protects the file on this file system."""

    mode: str
    """``WAL`` on local file systems, ``TRUNCATE`` (a rollback journal) on network ones."""

    label: str
    """What the trace says about it under the meta key ``journal``."""

    patience: float
    """Factor on the time between flushes: fewer and larger transactions where each costs round trips."""


def journal_for(path: str | None) -> Journal:
    """The journal for a file at this path, or for a trace in memory."""
    if path is None:
        return Journal("MEMORY", "memory", 1.0)
    network = network_type_here(path)
    return Journal("WAL", "wal", 1.0) if network is None else Journal("TRUNCATE", f"rollback ({network})", 5.0)


class Store:
    """One open trace. Used by one thread only, the one that made it."""

    def __init__(self, path: str | None, budget: int) -> None:
        self.path = path
        self.budget = budget
        self.journal = journal_for(path)
        self._lock: WriterLock | None = None
        self._open_buckets = OpenBuckets()
        if path is not None:
            check_place(path)
            self._lock = WriterLock(path)
        try:
            if path is not None:
                keep_old(path)
            self.connection = self._create()
        except BaseException as error:
            self._release()
            if isinstance(error, (sqlite3.Error, OSError)):
                raise TraceError(f"{path}: cannot be created ({error})") from error
            raise

    def write(self, batch: Batch) -> int:
        """Write everything in one transaction; return the number of malformed rows that were left out."""
        with transaction(self.connection):
            refused, buckets = _write(self.connection, batch, self._open_buckets)
        self._open_buckets = buckets
        return refused

    def live_bytes(self) -> int:
        """Size of what the file holds, its free pages left out."""
        return (self._pragma("page_count") - self._pragma("freelist_count")) * self._pragma("page_size")

    def displaced(self) -> bool:
        """True when the file at the path is no longer the one that is being written."""
        if self.path is None:
            return False
        try:
            return not os.path.samestat(os.stat(self.path), self._identity)
        except FileNotFoundError:
            return True

    def begin_anew(self, *, damaged: bool = False) -> str:
        """Leave a file that was deleted, replaced or ``damaged``, and begin an empty one; return what was found.

        A damaged file moves to the next free number. A file that somebody else put in its place is left alone, and the
        new one begins under that number.
        """
        assert self.path is not None
        found = "was deleted"
        if damaged:
            self.connection.close()
            found = f"is damaged, and kept as {move_trace(self.path)}"
        elif os.path.lexists(self.path):
            self._let_go()
            self.path, found = free_numbered(self.path), "was replaced by another file"
        else:
            self.connection.close()
            remove_trace(self.path)
        self._release()
        self._lock = WriterLock(self.path)
        self.connection = self._create()
        return found

    def snapshot(self) -> sqlite3.Connection:
        """A copy of an in-memory trace that any thread may read."""
        copy = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        self.connection.backup(copy)
        return copy

    def with_rows(self, batch: Batch) -> sqlite3.Connection:
        """A copy in memory that also holds what the file does not take; the batch stays as it is."""
        copy = Store(None, self.budget)
        self.connection.backup(copy.connection)
        copy._open_buckets = self._open_buckets
        copy.write(batch)
        return copy.connection

    def close(self) -> None:
        """End the file: one file without companions where no reader is looking, readable from read-only media."""
        try:
            if self.path is not None and not self.displaced():
                self.connection.execute("PRAGMA busy_timeout = 0")
                self.connection.execute("PRAGMA journal_mode = DELETE")
        except sqlite3.Error:
            pass  # A reader is looking: the file stays in WAL mode, which loses nothing.
        finally:
            self._let_go()
            self._release()

    def _let_go(self) -> None:
        if self.path is not None and self.displaced() and os.path.lexists(self.path):
            # Closing the connection would delete "<path>-wal" by its name: by now perhaps another writer's. Our own is
            # removed here, since SQLite would take it for the log of the file that stands there now.
            _KEPT_OPEN.append(self.connection)
            for name, ours in self._logs.items():
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.lstat(name), ours):
                        os.unlink(name)
        else:
            self.connection.close()

    def _create(self) -> sqlite3.Connection:
        self._open_buckets = OpenBuckets()
        connection = sqlite3.connect(
            ":memory:" if self.path is None else self.path, timeout=5.0, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA temp_store = MEMORY")
            # Before there is a write-ahead log: the mark of a trace is in the file itself from its first page on.
            schema.create(connection)
            if self.path is not None:
                self._set_journal(connection)
                schema.is_trace(connection)  # The log is opened at the first look into the file.
                self._identity = os.stat(self.path)
                logs = [self.path + end for end in COMPANIONS]
                self._logs = {name: os.lstat(name) for name in logs if os.path.lexists(name)}
            try:
                connection.execute("SELECT sqrt(4.0)").fetchone()
            except sqlite3.OperationalError:  # SQLite was built without its mathematical functions.
                connection.create_function("sqrt", 1, lambda x: None if x is None else x**0.5, deterministic=True)
        except BaseException:
            connection.close()
            if self.path is not None:
                remove_trace(self.path)  # Half of a trace, which the next attempt would take for another's file.
            raise
        return connection

    def _set_journal(self, connection: sqlite3.Connection) -> None:
        wal_bytes = min(max(self.budget // 16, 16 * PAGE), 1000 * PAGE)
        connection.execute(f"PRAGMA journal_mode = {self.journal.mode}")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA wal_autocheckpoint = {wal_bytes // PAGE}")
        connection.execute(f"PRAGMA journal_size_limit = {wal_bytes}")

    def _pragma(self, name: str) -> int:
        row: tuple[Any, ...] = self.connection.execute(f"PRAGMA {name}").fetchone()
        return int(row[0])

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def check_place(path: str) -> None:
    """Refuse a path that no trace can be written to."""
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise TraceError(f"{path}: the folder {folder} does not exist; create it first")
    if os.path.isdir(path):
        raise TraceError(f"{path}: is a folder; give the path of a file, e.g. {os.path.join(path, 'run.gnnstab')}")
    if os.path.lexists(path) and not os.path.isfile(path):
        raise TraceError(f"{path}: is not a regular file; give another path")
    if not os.access(folder, os.W_OK):
        raise TraceError(f"{path}: the folder {folder} cannot be written; choose another one")


def keep_old(path: str) -> None:
    """Move the trace of an earlier run to the next free number; refuse to touch anything that is no trace."""
    filled = os.path.exists(path) and os.stat(path).st_size > 0
    if filled:
        # The mark in the first page alone is read, neither journal nor log: SQLite would carry out what a stranger has
        # written there. It still has to be SQLite that reads: opening and closing the file directly would drop the locks
        # of its readers in this process.
        connection = sqlite3.connect(address(path, "mode=ro&immutable=1"), uri=True, isolation_level=None)
        with closing(connection):
            if not schema.is_trace(connection):
                raise TraceError(f"{path}: exists and is not a gnnstab trace; give another path or remove it")
    if filled or any(os.path.lexists(path + end) for end in COMPANIONS):
        move_trace(path)


def _write(connection: sqlite3.Connection, batch: Batch, open_buckets: OpenBuckets) -> tuple[int, OpenBuckets]:
    """Write a batch; return how many malformed site statistics were refused, and the buckets that stay open."""
    for table, rows in batch.facts.items():
        _put(connection, f"INSERT OR REPLACE INTO {table}", list(rows.values()))
    _put(connection, f"INSERT INTO event ({', '.join(EVENT)})", list(batch.events))
    _put(connection, "INSERT OR REPLACE INTO step", list(batch.steps))
    _put(connection, "INSERT INTO measure", list(batch.measures))
    finest, refused = gather(batch.sites, batch.shared)
    pooled, open_buckets = open_buckets.add(finest)
    for level, matrix in enumerate((finest, *pooled)):
        _write_level(connection, matrix, level)
    return refused, open_buckets


def _write_level(connection: sqlite3.Connection, rows: NDArray[np.float64], level: int) -> None:
    # The level is one parameter of all rows, so that no statement is parsed anew for it; what is 0 in all of them is none.
    columns = range(rows.shape[1])
    absent = () if rows[:, PART].any() or rows[:, NON_FINITE].any() else (PART, NON_FINITE)
    present = [i for i in columns if i not in absent]
    row = f"(?1,{','.join('?' if i in present else '0' for i in columns)})"
    # Whole numbers arrive as floats here; the INTEGER affinity of their columns turns them into integers.
    for size, values in _groups(rows[:, present].ravel().data.tolist(), len(present), MANY_AT_ONCE):
        try:
            connection.execute(_insert("INSERT INTO statistic", row, size), [level, *values])
        except sqlite3.IntegrityError:
            connection.execute(_insert("INSERT INTO statistic", row, size, MERGE), [level, *values])


def _put(connection: sqlite3.Connection, statement: str, rows: Sequence[Columns]) -> None:
    if not rows:
        return
    row = f"({','.join('?' * len(rows[0]))})"
    for size, values in _groups(list(chain.from_iterable(rows)), len(rows[0])):
        connection.execute(_insert(statement, row, size), values)


def _groups(values: list[Any], width: int, sizes: Sequence[int] = AT_ONCE) -> Iterator[tuple[int, list[Any]]]:
    """The rows, one after the other, cut into groups of the sizes that there are statements for."""
    start = 0
    for size in sizes:
        if size * width > VARIABLES:
            continue
        while len(values) - start >= size * width:
            yield size, values[start : start + size * width]
            start += size * width


@cache
def _insert(statement: str, row: str, size: int, tail: str = "") -> str:
    return f"{statement} VALUES {','.join([row] * size)}{tail}"
