"""The tables of a trace, how a file is recognised, and how an older one is brought up to date.

The tables and columns are described for readers in docs/trace.md.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Mapping

from gnnstab.errors import TraceError

APPLICATION_ID = int.from_bytes(b"gnst", "big")
"""Written into the header of the file (``PRAGMA application_id``): this SQLite file is a gnnstab trace."""

SCHEMA_VERSION = 1
"""Version of the tables (``PRAGMA user_version``)."""

FACTOR = 8
"""Steps of one level that make one row of the next: a seventh more rows in all, and three levels span 512 steps."""

LEVELS = 6
"""Levels of resolution; a row of the last one covers 32 768 steps."""

EVENTS_LIMIT = 10_000
"""Events of one run that are kept; the first ones tell what happened."""

EVENTS_TEXT = 8 * 2**20
"""Characters of all events of one run together."""

FAR = 2**62
"""A step beyond all steps."""

TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY NOT NULL, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE layer (name TEXT PRIMARY KEY NOT NULL, position INTEGER NOT NULL, kind TEXT NOT NULL, facts TEXT NOT NULL);
CREATE TABLE blind (layer TEXT NOT NULL, site TEXT NOT NULL, reason TEXT NOT NULL, PRIMARY KEY (layer, site));
CREATE TABLE series (id INTEGER PRIMARY KEY, layer TEXT NOT NULL, mode TEXT NOT NULL, call INTEGER NOT NULL,
    site TEXT NOT NULL);
CREATE TABLE resolution (level INTEGER PRIMARY KEY, stride INTEGER NOT NULL, since INTEGER NOT NULL,
    until INTEGER NOT NULL);
CREATE TABLE statistic (level INTEGER NOT NULL, step INTEGER NOT NULL, series INTEGER NOT NULL, part INTEGER NOT NULL,
    span INTEGER NOT NULL, minimum REAL, maximum REAL, rms REAL, count INTEGER NOT NULL, non_finite INTEGER NOT NULL,
    PRIMARY KEY (level, step, series, part)) WITHOUT ROWID;
CREATE TABLE quantity (id INTEGER PRIMARY KEY, layer TEXT NOT NULL, mode TEXT NOT NULL, call INTEGER NOT NULL,
    name TEXT NOT NULL, head INTEGER NOT NULL);
CREATE TABLE measure (step INTEGER NOT NULL, quantity INTEGER NOT NULL, number INTEGER NOT NULL, level INTEGER NOT NULL,
    value REAL, detail TEXT, PRIMARY KEY (step, quantity, number)) WITHOUT ROWID;
CREATE TABLE step (step INTEGER PRIMARY KEY, level INTEGER NOT NULL, time REAL, loss REAL, lr REAL, scale REAL,
    grad_norm REAL, skipped INTEGER NOT NULL);
CREATE TABLE event (id INTEGER PRIMARY KEY, step INTEGER NOT NULL, kind TEXT NOT NULL, layer TEXT, mode TEXT NOT NULL,
    call INTEGER NOT NULL, stage TEXT, origin TEXT, nodes TEXT NOT NULL, edges TEXT NOT NULL, heads TEXT NOT NULL,
    message TEXT NOT NULL, detail TEXT NOT NULL);
CREATE VIEW statistics AS SELECT a.step, a.span, s.layer, s.mode, s.call, s.site, a.minimum, a.maximum, a.rms, a.count,
    a.non_finite FROM resolution r JOIN statistic a ON a.level = r.level AND a.step >= r.since AND a.step < r.until
    JOIN series s ON s.id = a.series;
CREATE VIEW measures AS SELECT m.step, q.layer, q.mode, q.call, q.name, q.head, m.value, m.detail
    FROM measure m JOIN quantity q ON q.id = m.quantity;
"""

COLUMNS: Mapping[str, frozenset[str]] = {
    table: frozenset(re.findall(r"(\w+) (?:TEXT|INTEGER|REAL)", columns))
    for table, columns in re.findall(r"CREATE TABLE (\w+) \((.*?)\)(?: WITHOUT ROWID)?;", TABLES, re.DOTALL)
}
"""Columns that a file of this version must have, as real tables."""

MIGRATIONS: Mapping[int, tuple[str, ...]] = {}
"""Version → statements that make it the next version. Empty as long as there is only one version."""


def create(connection: sqlite3.Connection) -> None:
    """Write all tables and the marks of the format into an empty database."""
    # Level 0 counts for all steps at first; the levels above take over where it is deleted.
    levels = ", ".join(f"({level}, {FACTOR**level}, {-FAR}, {FAR if level == 0 else -FAR})" for level in range(LEVELS))
    connection.executescript(
        f"BEGIN IMMEDIATE; PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION};"
        f"{TABLES} INSERT INTO resolution VALUES {levels}; COMMIT;"
    )


def is_trace(connection: sqlite3.Connection) -> bool:
    """Tell whether the database carries the mark of a trace; a file that is no database counts as no."""
    try:
        (mark,) = connection.execute("PRAGMA application_id").fetchone()
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise
        return False
    return bool(mark == APPLICATION_ID)


def version(connection: sqlite3.Connection, path: str) -> int:
    """Version of the tables; raises `TraceError` for another format or for a version newer than this one."""
    if not is_trace(connection):
        raise TraceError(f"{path}: not a gnnstab trace (another format, or damaged from its first bytes on)")
    found = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if found > SCHEMA_VERSION:
        raise TraceError(
            f"{path}: written by a newer gnnstab (trace version {found}, this one reads up to {SCHEMA_VERSION}); "
            "upgrade gnnstab to read it"
        )
    if any(step not in MIGRATIONS for step in range(found, SCHEMA_VERSION)):
        raise TraceError(f"{path}: trace version {found} is not known to this gnnstab")
    return found


def upgrade(connection: sqlite3.Connection, found: int) -> None:
    """Bring a database of version ``found`` up to `SCHEMA_VERSION`, one version after the other."""
    for step in range(found, SCHEMA_VERSION):
        statements = " ".join(statement.rstrip("; ") + ";" for statement in MIGRATIONS[step])
        connection.executescript(f"BEGIN IMMEDIATE; {statements} PRAGMA user_version = {step + 1}; COMMIT;")


def check_tables(connection: sqlite3.Connection, path: str) -> None:
    """Refuse a file whose tables are missing, lack columns, or are views or virtual tables in disguise."""
    kinds = dict(
        connection.execute(
            "SELECT name, type = 'table' AND rootpage > 0 FROM sqlite_master WHERE name IN "
            f"({', '.join('?' * len(COLUMNS))})",
            tuple(COLUMNS),
        )
    )
    for table, columns in COLUMNS.items():
        # A virtual table has no pages of its own, so its rootpage is 0.
        if not kinds.get(table):
            raise TraceError(f"{path}: damaged trace, the table {table} is missing or is not a plain table")
        present = {row[1] for row in connection.execute(f'PRAGMA table_info("{table}")')}
        if not columns <= present:
            raise TraceError(f"{path}: damaged trace, the table {table} lacks {', '.join(sorted(columns - present))}")
