"""A connection to a trace that anybody may have made: it is only read, within limits, and none of its SQL runs."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain, repeat
from typing import Any

from gnnstab.errors import TraceError
from gnnstab.trace import _schema as schema

LONGEST_ROW = 4 * 2**20
"""Bytes of the longest row, or text, that is read; the longest that gnnstab writes is far below it."""

NUMBERS_ROW = 1000
"""The same for rows of numbers alone, which are fetched by thousands at a time."""

MOST_ROWS = 3_000_000
"""Rows of numbers of all kinds that a trace may hold: as many as fit into the largest budget of a writer, at some 48 bytes each."""

MOST_FACTS = 100_000
"""Rows of any other kind: layers, series, metadata."""

MOST_TEXT = 128 * 2**20
"""Bytes of text and blobs that one reading of numbers takes: the largest budget of a writer. Pages of a crafted file may
refer to each other, so that a small one holds more text than memory can."""

MOST_JSON = 4 * schema.EVENTS_TEXT
"""The same for all that may be JSON, which takes some twenty times its length when it is parsed."""

OPERATIONS = 1_000_000
"""Virtual-machine operations between two looks at how long a query has run."""

MOST_OPERATIONS = 250 * OPERATIONS
"""Operations of one query, several times what the largest trace needs; a few seconds."""

SCHEMA_OPERATIONS = 10_000
"""The same while a file is opened; the description of gnnstab's tables takes a few hundred."""

LONGEST_SQL = 64 * 2**10
"""Bytes of one statement, those that describe tables among them."""

SPOILT = (sqlite3.Error, OverflowError, UnicodeError)
"""What Python's sqlite3 raises over damaged pages: its own errors, and those of names and numbers it cannot convert."""

TEXTS_AT_ONCE = 64
NUMBERS_AT_ONCE = 8192 if sys.version_info >= (3, 11) else TEXTS_AT_ONCE
"""Rows that are fetched together; before Python 3.11 nothing bounds what a row of numbers may hold."""

_PRAGMAS = frozenset(
    [
        *("trusted_schema", "cell_size_check", "temp_store", "query_only"),
        *("page_count", "page_size", "journal_mode", "application_id", "user_version", "table_info"),
    ]
)
_FUNCTIONS = frozenset(("abs", "count", "max", "min"))


class Connection:
    """One trace file, opened read-only, or a copy of one in memory."""

    def __init__(self, connection: sqlite3.Connection, path: str) -> None:
        self.path = path
        self.notes: list[str] = []
        self._connection = connection
        self._text_left = 0
        harden(connection)
        connection.text_factory = self._text

    def rows(self, query: str, parameters: Sequence[Any] = (), most: int = MOST_FACTS) -> list[tuple[Any, ...]]:
        """All rows of a query; `TraceError` when there are more than ``most``."""
        return [row for chunk in self._chunks(query, parameters, most, TEXTS_AT_ONCE, MOST_JSON) for row in chunk]

    def chunks(self, query: str, most: int, parameters: Sequence[Any] = ()) -> Iterator[list[tuple[Any, ...]]]:
        """The rows of numbers that may come with a text, in short lists."""
        return self._chunks(query, parameters, most, TEXTS_AT_ONCE, MOST_TEXT)

    def numbers(
        self, query: str, parameters: Sequence[Any] = (), most: int = MOST_ROWS
    ) -> Iterator[list[tuple[Any, ...]]]:
        """The rows of a query whose columns are all numbers, in long lists."""
        self._limit_rows(NUMBERS_ROW)
        try:
            yield from self._chunks(query, parameters, most, NUMBERS_AT_ONCE, MOST_TEXT)
        finally:
            self._limit_rows(LONGEST_ROW)

    def _chunks(
        self, query: str, parameters: Sequence[Any], most: int, size: int, text: int
    ) -> Iterator[list[tuple[Any, ...]]]:
        self._text_left = text
        limit_operations(self._connection, MOST_OPERATIONS)
        with self.reading():
            cursor = self._connection.execute(query, parameters)
            count = 0
            while chunk := cursor.fetchmany(size):
                count += len(chunk)
                if count > most:
                    raise TraceError(f"{self.path}: damaged trace, it holds more rows than gnnstab writes ({most})")
                if size == TEXTS_AT_ONCE and bytes in map(type, chain.from_iterable(chunk)):
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
            raise OverflowError("more text than gnnstab writes")


def limit_operations(connection: sqlite3.Connection, most: int) -> None:
    """End what runs on a connection after ``most`` operations: pages of a crafted file may refer to each other so that a
    scan never ends. SQLite's `count(*)` of a whole table is one operation, and is never asked for."""
    each = min(most, OPERATIONS)
    counted = chain(repeat(0, most // each), repeat(1))
    # No Python code: what a signal handler raises in it, as of Ctrl-C, SQLite would take for an answer, and it were lost.
    connection.set_progress_handler(counted.__next__, each)


def harden(connection: sqlite3.Connection) -> None:
    """Settings for a database that may have been made to harm its reader: it is read, and none of its code runs.

    The first statement reads the schema, so its operations are limited before.
    """
    limit_operations(connection, SCHEMA_OPERATIONS)
    connection.set_authorizer(None)
    connection.text_factory = _text
    for setting in ("trusted_schema = OFF", "cell_size_check = ON", "temp_store = MEMORY", "query_only = ON"):
        connection.execute(f"PRAGMA {setting}")
    if sys.version_info >= (3, 11):
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST_ROW)
        connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, LONGEST_SQL)
        connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    if sys.version_info >= (3, 12):
        connection.setconfig(sqlite3.SQLITE_DBCONFIG_DEFENSIVE, True)
        connection.setconfig(sqlite3.SQLITE_DBCONFIG_ENABLE_TRIGGER, False)
        connection.setconfig(sqlite3.SQLITE_DBCONFIG_ENABLE_VIEW, False)
    for table, columns in schema.COLUMNS.items():
        for column in ("", *columns):
            _authorize(sqlite3.SQLITE_READ, table, column, "main", None)
    connection.set_authorizer(_authorize)


@lru_cache(4096)
def _authorize(action: int, first: str | None, second: str | None, database: str | None, source: str | None) -> int:
    """Allow what gnnstab's own queries do, and nothing else: no writing, no ATTACH, no views, triggers or functions.

    Answered from the cache no Python code runs, in which a signal handler could raise: SQLite swallows that and denies.
    """
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


def _text(raw: bytes) -> str:
    # SQLite's own limit, set above, needs Python 3.11; before that a long text is refused when it arrives.
    if len(raw) > LONGEST_ROW:
        raise OverflowError("string or blob too big")
    return raw.decode("utf-8", "replace")
