"""Opening a trace to read it: never written to, never trusted, and one consistent snapshot."""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from gnnstab.errors import TraceError
from gnnstab.trace import schema
from gnnstab.trace.companions import address, check_companions, check_journal

LONGEST_VALUE = 16 * 2**20
"""Bytes of the longest text that is read; the longest that gnnstab writes is far below it."""

LARGEST_COPY = 512 * 2**20
"""Bytes of a trace that is read from a copy in memory."""

OPERATIONS = 1_000_000
"""Virtual-machine operations between two looks at how long a query has run."""

SPOILT = (sqlite3.Error, OverflowError, UnicodeError)
"""What Python's sqlite3 raises over damaged pages: its own errors, and those of names and numbers it cannot convert."""


class Connection:
    """One trace file, opened read-only, or a copy of one in memory."""

    def __init__(self, connection: sqlite3.Connection, path: str, size: int) -> None:
        self.path = path
        self.notes: list[str] = []
        self.row_limit = 10_000 + size // 8
        """More rows than this cannot be in a file of this size; a file crafted to loop has more."""

        self._connection = connection
        self._steps_left = 0
        self._query_steps = 200 + size // 4000
        harden(connection)
        connection.set_progress_handler(self._out_of_time, OPERATIONS)

    def rows(self, query: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        return [row for chunk in self.chunks(query, parameters) for row in chunk]

    def chunks(self, query: str, parameters: Sequence[Any] = (), size: int = 8192) -> Iterator[list[tuple[Any, ...]]]:
        """The rows of a query in lists of at most ``size``."""
        self._steps_left = self._query_steps
        with self.reading():
            cursor = self._connection.execute(query, parameters)
            count = 0
            while chunk := cursor.fetchmany(size):
                count += len(chunk)
                if count > self.row_limit:
                    raise TraceError(f"{self.path}: damaged trace, it claims more rows than fit into its size")
                yield chunk

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Turn every error of SQLite into a `TraceError` of one line."""
        try:
            yield
        except SPOILT as error:
            raise TraceError(f"{self.path}: damaged or unreadable trace ({error})") from error

    def close(self) -> None:
        """Let the snapshot go."""
        self._connection.close()

    def _out_of_time(self) -> int:
        # The pages of a crafted file may refer to each other so that a scan never ends.
        self._steps_left -= 1
        return int(self._steps_left < 0)


def open_trace(path: str) -> Connection:
    """Open a trace file for reading; raises `TraceError` with what is wrong and, where it helps, what to do."""
    check_file(path)
    notes: list[str] = []
    connection = _open(path, notes)
    try:
        found = _validate(connection, path)
        if found < schema.SCHEMA_VERSION or _may_block_its_writer(connection):
            connection = _copy(connection)
            schema.upgrade(connection, found)
            schema.check_tables(connection, path)
        opened = Connection(connection, path, _bytes_of(path))
    except SPOILT as error:
        connection.close()
        raise TraceError(f"{path}: damaged trace ({error})") from error
    except BaseException:
        connection.close()
        raise
    opened.notes += notes
    return opened


def check_file(path: str) -> None:
    """Refuse what is missing, empty or no file, without opening it.

    Opening and closing the file other than through SQLite would drop the locks that a writer in this process holds.
    """
    if not os.path.exists(path):
        raise TraceError(f"{path}: no such file")
    if not os.path.isfile(path):
        raise TraceError(f"{path}: not a regular file")
    if _bytes_of(path) == 0:
        raise TraceError(f"{path}: empty file, not a gnnstab trace")
    check_companions(path)


def harden(connection: sqlite3.Connection) -> None:
    """Settings for a database that may have been made to harm its reader."""
    connection.text_factory = _text
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    connection.execute("PRAGMA temp_store = MEMORY")
    if sys.version_info >= (3, 11):
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST_VALUE)
        connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)


def _text(raw: bytes) -> str:
    # SQLite's own limit, set above, needs Python 3.11; before that a long text is refused when it arrives.
    if len(raw) > LONGEST_VALUE:
        raise OverflowError("string or blob too big")
    return raw.decode("utf-8", "replace")


def _open(path: str, notes: list[str]) -> sqlite3.Connection:
    try:
        return _connect(path, "mode=ro")
    except sqlite3.OperationalError as error:
        if _was_interrupted(path, error):
            return _rolled_back(path)
        # Reading a WAL file needs a file of shared memory beside it, which a read-only folder cannot get.
        if os.access(os.path.dirname(os.path.abspath(path)), os.W_OK):
            raise TraceError(_explain(path, error)) from error
    except SPOILT as error:
        raise TraceError(_explain(path, error)) from error
    try:
        connection = _connect(path, "mode=ro&immutable=1")
    except SPOILT as error:
        raise TraceError(_explain(path, error)) from error
    if os.path.exists(f"{path}-wal"):
        notes.append(f"{path}: read from a read-only folder, the rows of its last flushes in {path}-wal are not seen")
    return connection


def _was_interrupted(path: str, error: sqlite3.OperationalError) -> bool:
    """A writer was killed within a transaction, and only who may write could undo what it had begun."""
    return "readonly" in str(error) and os.path.isfile(f"{path}-journal")


def _rolled_back(path: str) -> sqlite3.Connection:
    """A copy in memory in which the unfinished transaction is undone; the file itself stays as it is."""
    held = sum(os.stat(path + end).st_size for end in ("", "-journal"))
    if held > LARGEST_COPY:
        raise TraceError(
            f"{path}: its writer was killed within a transaction, and it is too large to be read from a copy ({held} bytes); "
            f'run `sqlite3 FILE "PRAGMA user_version"` once, which undoes the transaction'
        )
    try:
        with tempfile.TemporaryDirectory(prefix="gnnstab-") as folder:
            there = os.path.join(folder, "trace")
            for end in ("", "-journal"):
                shutil.copyfile(os.path.realpath(path) + end, there + end, follow_symlinks=False)
            check_journal(path, f"{there}-journal")
            return _copy(_connect(there, "mode=rw"))
    except OSError as error:
        raise TraceError(f"{path}: its writer was killed, and a copy to repair could not be made ({error})") from error
    except SPOILT as error:
        raise TraceError(_explain(path, error)) from error


def _connect(path: str, mode: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        address(path, mode), uri=True, timeout=10.0, isolation_level=None, check_same_thread=False
    )
    try:
        harden(connection)
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def _validate(connection: sqlite3.Connection, path: str) -> int:
    found = schema.version(connection, path)
    pages, page_size = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
    held = os.stat(path).st_size
    # With a write-ahead log beside it the file may rightly be shorter than the database.
    if not os.path.exists(f"{path}-wal") and held < pages * page_size:
        raise TraceError(f"{path}: truncated trace, {held} of {pages * page_size} bytes are there; copy it again")
    if found == schema.SCHEMA_VERSION:
        schema.check_tables(connection, path)
    return found


def _may_block_its_writer(connection: sqlite3.Connection) -> bool:
    """With a rollback journal a reader keeps the writer out, so an unfinished trace is copied and let go."""
    if connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
        return False
    return connection.execute("SELECT 1 FROM meta WHERE key = 'closed'").fetchone() is None


def _copy(connection: sqlite3.Connection) -> sqlite3.Connection:
    copy = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    connection.backup(copy)
    connection.close()
    return copy


def _bytes_of(path: str) -> int:
    """Size of a database with its write-ahead log, in which all of a young trace may still be."""
    total = 0
    for name in (path, f"{path}-wal"):
        with suppress(FileNotFoundError):  # The log comes and goes with its writer.
            total += os.stat(name).st_size
    return total


def _explain(path: str, error: Exception) -> str:
    if "not a database" in str(error):
        return f"{path}: not a gnnstab trace (not an SQLite file)"
    if "locked" in str(error):
        return f"{path}: locked by its writer; try again"
    return f"{path}: cannot be read as a trace ({error})"
