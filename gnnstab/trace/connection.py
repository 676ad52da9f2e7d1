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

LARGEST_FILE = 256 * 2**20
"""Bytes of a trace with its log: twice the largest budget of a writer. The size is the apparent one, since a sparse
file costs its reader as much time as a full one."""

LONGEST_ROW = 4 * 2**20
"""Bytes of the longest row, or text, that is read; the longest that gnnstab writes is far below it."""

NUMBERS_ROW = 1000
"""The same for rows of numbers alone, which are fetched by thousands at a time."""

MOST_ROWS = 3_000_000
"""Rows of numbers that one reading takes: as many as fit into the largest budget of a writer."""

MOST_FACTS = 100_000
"""Rows of any other kind: layers, series, metadata."""

MOST_TEXT = 64 * 2**20
"""Bytes of text and blobs that one reading takes. Pages of a crafted file may refer to each other, so that a small one
holds more text than memory can."""

OPERATIONS = 1_000_000
"""Virtual-machine operations between two looks at how long a query has run."""

MOST_OPERATIONS = 250 * OPERATIONS
"""Operations of one query, several times what the largest trace needs; a few seconds."""

SPOILT = (sqlite3.Error, OverflowError, UnicodeError)
"""What Python's sqlite3 raises over damaged pages: its own errors, and those of names and numbers it cannot convert."""

TEXTS_AT_ONCE = 64
NUMBERS_AT_ONCE = 8192 if sys.version_info >= (3, 11) else TEXTS_AT_ONCE
"""Rows that are fetched together; before Python 3.11 nothing bounds what a row of numbers may hold."""

_PRAGMAS = frozenset(
    [
        "trusted_schema",
        "cell_size_check",
        "temp_store",
        "query_only",
        "page_count",
        "page_size",
        "journal_mode",
        "application_id",
        "user_version",
        "table_info",
    ]
)
_FUNCTIONS = frozenset(("abs", "count", "max", "min"))


class Connection:
    """One trace file, opened read-only, or a copy of one in memory."""

    def __init__(self, connection: sqlite3.Connection, path: str) -> None:
        self.path = path
        self.notes: list[str] = []
        self._connection = connection
        self._operations_left = self._text_left = 0
        harden(connection)
        connection.text_factory = self._text
        connection.set_progress_handler(self._out_of_time, OPERATIONS)

    def rows(self, query: str, parameters: Sequence[Any] = (), most: int = MOST_FACTS) -> list[tuple[Any, ...]]:
        """All rows of a query; `TraceError` when there are more than ``most``."""
        return [row for chunk in self.chunks(query, most, parameters) for row in chunk]

    def chunks(self, query: str, most: int, parameters: Sequence[Any] = ()) -> Iterator[list[tuple[Any, ...]]]:
        """The same in short lists, since the rows may hold texts."""
        return self._chunks(query, parameters, most, TEXTS_AT_ONCE)

    def numbers(
        self, query: str, parameters: Sequence[Any] = (), most: int = MOST_ROWS
    ) -> Iterator[list[tuple[Any, ...]]]:
        """The rows of a query whose columns are all numbers, in long lists."""
        self._limit_rows(NUMBERS_ROW)
        try:
            yield from self._chunks(query, parameters, most, NUMBERS_AT_ONCE)
        finally:
            self._limit_rows(LONGEST_ROW)

    def _chunks(self, query: str, parameters: Sequence[Any], most: int, size: int) -> Iterator[list[tuple[Any, ...]]]:
        self._operations_left, self._text_left = MOST_OPERATIONS, MOST_TEXT
        with self.reading():
            cursor = self._connection.execute(query, parameters)
            count = 0
            while chunk := cursor.fetchmany(size):
                count += len(chunk)
                if count > most:
                    raise TraceError(f"{self.path}: damaged trace, it holds more rows than gnnstab writes ({most})")
                if size == TEXTS_AT_ONCE:
                    self._take(sum(len(value) for row in chunk for value in row if isinstance(value, bytes)))
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

    def _limit_rows(self, size: int) -> None:
        if sys.version_info >= (3, 11):
            self._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, size)

    def _text(self, raw: bytes) -> str:
        self._take(len(raw))
        return _text(raw)

    def _take(self, size: int) -> None:
        self._text_left -= size
        if self._text_left < 0:
            raise OverflowError(f"more than {MOST_TEXT} bytes of text")

    def _out_of_time(self) -> int:
        # The pages of a crafted file may refer to each other so that a scan never ends.
        self._operations_left -= OPERATIONS
        return int(self._operations_left < 0)


def open_trace(path: str) -> Connection:
    """Open a trace file for reading; raises `TraceError` with what is wrong and, where it helps, what to do."""
    check_file(path)
    notes: list[str] = []
    connection = _open(path, notes)
    try:
        found = _validate(connection, path)
        if found < schema.SCHEMA_VERSION or _may_block_its_writer(connection):
            connection = _copy(connection, path)
            schema.upgrade(connection, found)
            schema.check_tables(connection, path)
        opened = Connection(connection, path)
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
    held = _bytes_of(path)
    if held == 0:
        raise TraceError(f"{path}: empty file, not a gnnstab trace")
    if held > LARGEST_FILE:
        raise TraceError(f"{path}: larger than any trace of gnnstab ({held} bytes, at most {LARGEST_FILE} are read)")
    check_companions(path)


def harden(connection: sqlite3.Connection) -> None:
    """Settings for a database that may have been made to harm its reader: it is read, and none of its code runs."""
    connection.set_authorizer(None)
    connection.text_factory = _text
    for setting in ("trusted_schema = OFF", "cell_size_check = ON", "temp_store = MEMORY", "query_only = ON"):
        connection.execute(f"PRAGMA {setting}")
    if sys.version_info >= (3, 11):
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST_ROW)
        connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    if sys.version_info >= (3, 12):
        connection.setconfig(sqlite3.SQLITE_DBCONFIG_DEFENSIVE, True)
        connection.setconfig(sqlite3.SQLITE_DBCONFIG_ENABLE_TRIGGER, False)
        connection.setconfig(sqlite3.SQLITE_DBCONFIG_ENABLE_VIEW, False)
    connection.set_authorizer(_authorize)


def _authorize(action: int, first: str | None, second: str | None, database: str | None, source: str | None) -> int:
    """Allow what gnnstab's own queries do, and nothing else: no writing, no ATTACH, no views, triggers or functions."""
    if source is not None:  # The trigger or view on whose behalf this would happen.
        return sqlite3.SQLITE_DENY
    allowed = {
        sqlite3.SQLITE_SELECT: True,
        sqlite3.SQLITE_TRANSACTION: True,
        sqlite3.SQLITE_READ: first in schema.COLUMNS or first in ("sqlite_master", "sqlite_schema"),
        sqlite3.SQLITE_FUNCTION: second in _FUNCTIONS,
        sqlite3.SQLITE_PRAGMA: first in _PRAGMAS,
    }
    return sqlite3.SQLITE_OK if allowed.get(action) else sqlite3.SQLITE_DENY


def _authorize_upgrade(*action: str | int | None) -> int:
    return sqlite3.SQLITE_OK if action[-1] is None else sqlite3.SQLITE_DENY


def _text(raw: bytes) -> str:
    # SQLite's own limit, set above, needs Python 3.11; before that a long text is refused when it arrives.
    if len(raw) > LONGEST_ROW:
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
    try:
        with tempfile.TemporaryDirectory(prefix="gnnstab-") as folder:
            there = os.path.join(folder, "trace")
            for end in ("", "-journal"):
                shutil.copyfile(os.path.realpath(path) + end, there + end, follow_symlinks=False)
            check_journal(path, f"{there}-journal")
            return _copy(_connect(there, "mode=rw"), path)
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


def _copy(connection: sqlite3.Connection, path: str) -> sqlite3.Connection:
    """All of it in memory, and the connection closed."""
    pages, size = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
    if pages * size > LARGEST_FILE:  # A journal may claim more pages than the file has.
        connection.close()
        raise TraceError(f"{path}: damaged trace, it claims to be of {pages * size} bytes")
    copy = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    connection.backup(copy)
    connection.close()
    copy.set_authorizer(_authorize_upgrade)
    return copy


def _bytes_of(path: str) -> int:
    """Apparent size of a database with its journal or log, in which most of a young trace may still be."""
    total = 0
    for name in (path, f"{path}-wal", f"{path}-journal"):
        with suppress(FileNotFoundError):  # The log comes and goes with its writer.
            total += os.stat(name).st_size
    return total


def _explain(path: str, error: Exception) -> str:
    if "not a database" in str(error):
        return f"{path}: not a gnnstab trace (not an SQLite file)"
    if "locked" in str(error):
        return f"{path}: locked by its writer; try again"
    return f"{path}: cannot be read as a trace ({error})"
