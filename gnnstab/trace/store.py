"""The file that a writer fills: opened safely, written in transactions, rescued when it is taken away."""

from __future__ import annotations

import os
import sqlite3
from dataclasses import dataclass
from typing import Any

from gnnstab.errors import TraceError
from gnnstab.trace import schema, tables
from gnnstab.trace.batch import Batch
from gnnstab.trace.companions import COMPANIONS, address
from gnnstab.trace.filesystem import network_type_here
from gnnstab.trace.lock import WriterLock
from gnnstab.trace.paths import free_numbered, move_trace, remove_trace
from gnnstab.trace.pooling import Waiting

PAGE = 4096
_KEPT_OPEN: list[sqlite3.Connection] = []


@dataclass
class Journal:
    """How SQLite protects the file on this file system."""

    mode: str
    """``WAL`` or ``TRUNCATE``."""

    label: str
    """What the trace says about it under the meta key ``journal``."""

    patience: float
    """Factor on the time between flushes: fewer and larger transactions where each costs round trips."""

    @classmethod
    def for_path(cls, path: str | None) -> Journal:
        """WAL on local file systems, a rollback journal on network ones."""
        network = None if path is None else network_type_here(path)
        if path is None:
            return cls("MEMORY", "memory", 1.0)
        return cls("WAL", "wal", 1.0) if network is None else cls("TRUNCATE", f"rollback ({network})", 5.0)


class Store:
    """One open trace. Used by one thread only, the one that made it."""

    def __init__(self, path: str | None, budget: int) -> None:
        self.path = path
        self.budget = budget
        self.journal = Journal.for_path(path)
        self._lock: WriterLock | None = None
        self._waiting = Waiting()
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
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            refused, waiting = tables.write(self.connection, batch, self._waiting)
            self.connection.execute("COMMIT")
        except BaseException:
            self.rollback()
            raise
        self._waiting = waiting
        return refused

    def rollback(self) -> None:
        """Leave a transaction that failed."""
        if self.connection.in_transaction:
            self.connection.execute("ROLLBACK")

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

    def rescue(self) -> str:
        """Save everything after the file was deleted or replaced, and go on there; return what was done.

        SQLite still holds the deleted file, so nothing that was flushed is lost. A file that somebody else put in
        its place is left alone; the run then goes on under the next free number.
        """
        assert self.path is not None
        replaced = os.path.exists(self.path)
        target = free_numbered(self.path) if replaced else self.path
        scratch = f"{target}-rescue"
        remove_trace(scratch)
        self.connection.execute("VACUUM INTO ?", (scratch,))
        if replaced:
            # Closing the connection would delete "<path>-wal" by its name: by now another writer's.
            _KEPT_OPEN.append(self.connection)
        else:
            self.connection.close()
        self._release()
        self._lock = WriterLock(target)
        os.replace(scratch, target)
        self.path = target
        self.connection = self._connect()
        return "was replaced by another file" if replaced else "was deleted"

    def reopen(self) -> bool:
        """Open the same file again after it refused to be written; True when it had to be begun anew."""
        assert self.path is not None
        self.connection.close()
        if not os.path.exists(self.path) or os.stat(self.path).st_size == 0:
            self.connection = self._create()
            return True
        self.connection = self._connect()
        schema.version(self.connection, self.path)
        return False

    def start_over(self) -> str:
        """Set a damaged file aside and begin an empty one in its place; return the name of the damaged one."""
        assert self.path is not None
        self.connection.close()
        aside = move_trace(self.path) if os.path.exists(self.path) else ""
        remove_trace(self.path)
        self.connection = self._create()
        return aside

    def snapshot(self) -> sqlite3.Connection:
        """A copy of an in-memory trace that any thread may read."""
        copy = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        self.connection.backup(copy)
        return copy

    def close(self) -> None:
        """End the file: one file without companions where no reader is looking, readable from read-only media."""
        try:
            if self.path is not None and not self.displaced():
                self.connection.execute("PRAGMA busy_timeout = 0")
                self.connection.execute("PRAGMA journal_mode = DELETE")
        except sqlite3.Error:
            pass  # A reader is looking: the file stays in WAL mode, which loses nothing.
        finally:
            if self.path is not None and self.displaced() and os.path.exists(self.path):
                _KEPT_OPEN.append(self.connection)
            else:
                self.connection.close()
            self._release()

    def _create(self) -> sqlite3.Connection:
        self._waiting = Waiting()
        return self._connect(new=True)

    def _connect(self, new: bool = False) -> sqlite3.Connection:
        connection = sqlite3.connect(
            ":memory:" if self.path is None else self.path, timeout=5.0, isolation_level=None, check_same_thread=False
        )
        try:
            self._prepare(connection, new)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection, new: bool) -> None:
        connection.execute("PRAGMA trusted_schema = OFF")
        if new:
            # Before there is a write-ahead log: the mark of a trace is in the file itself from its first page on.
            schema.create(connection)
        connection.execute("PRAGMA temp_store = MEMORY")
        if self.path is not None:
            wal_bytes = min(max(self.budget // 16, 16 * PAGE), 1000 * PAGE)
            connection.execute(f"PRAGMA journal_mode = {self.journal.mode}")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(f"PRAGMA wal_autocheckpoint = {wal_bytes // PAGE}")
            connection.execute(f"PRAGMA journal_size_limit = {wal_bytes}")
            self._identity = os.stat(self.path)
        ensure_sqrt(connection)

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
    if os.path.exists(path) and os.stat(path).st_size and not _is_marked(path):
        raise TraceError(f"{path}: exists and is not a gnnstab trace; give another path or remove it")
    if any(os.path.lexists(path + end) for end in COMPANIONS) or (os.path.exists(path) and os.stat(path).st_size):
        move_trace(path)


def _is_marked(path: str) -> bool:
    """Read the mark of a trace in its first page, and nothing else.

    Neither journal nor log is looked at: SQLite would carry out what a stranger has written there. It still has to be
    SQLite that reads: opening and closing the file directly would drop the locks of its readers in this process.
    """
    connection = sqlite3.connect(address(path, "mode=ro&immutable=1"), uri=True, isolation_level=None)
    try:
        return schema.is_trace(connection)
    finally:
        connection.close()


def ensure_sqrt(connection: sqlite3.Connection) -> None:
    """Provide ``sqrt`` where SQLite was built without its mathematical functions."""
    try:
        connection.execute("SELECT sqrt(4.0)").fetchone()
    except sqlite3.OperationalError:
        connection.create_function("sqrt", 1, lambda x: None if x is None else x**0.5, deterministic=True)
