"""Opening a trace to read it: never written to, never trusted, and one consistent snapshot."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from contextlib import suppress

from gnnstab.errors import TraceError
from gnnstab.trace import _schema as schema
from gnnstab.trace._companions import address, check_companions, check_journal
from gnnstab.trace._connection import MOST_OPERATIONS, SPOILT, Connection, harden, limit_operations

LARGEST_FILE = 256 * 2**20
"""Bytes of a trace with its log: twice the largest budget of a writer. The size is the apparent one, since a sparse
file costs its reader as much time as a full one."""


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
    held = bytes_of(path)
    if held == 0:
        raise TraceError(f"{path}: empty file, not a gnnstab trace")
    if held > LARGEST_FILE:
        raise TraceError(f"{path}: larger than any trace of gnnstab ({held} bytes, at most {LARGEST_FILE} are read)")
    check_companions(path)


def _open(path: str, notes: list[str]) -> sqlite3.Connection:
    if (ended := _ended(path)) is not None:
        return ended
    try:
        return _connect(path, "mode=ro")
    except sqlite3.OperationalError as error:
        # A writer was killed within a transaction, and only who may write could undo what it had begun.
        if "readonly" in str(error) and os.path.isfile(f"{os.path.realpath(path)}-journal"):
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
    if os.path.exists(f"{os.path.realpath(path)}-wal"):
        notes.append(f"{path}: read from a read-only folder, the rows of its last flushes in {path}-wal are not seen")
    return connection


def _ended(path: str) -> sqlite3.Connection | None:
    """A finished run without log and journal: nobody writes to it, and so opened it leaves no log of SQLite's beside it."""
    if any(os.path.exists(os.path.realpath(path) + end) for end in ("-wal", "-journal")):
        return None
    # Whatever is wrong, perhaps but halfway through being written, is told by the next look.
    with suppress(TraceError, *SPOILT):
        connection = _connect(path, "mode=ro&immutable=1")
        try:
            _validate(connection, path)
            if not _may_block_its_writer(connection):
                return connection
        except BaseException:
            connection.close()
            raise
        connection.close()
    return None


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
        connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def _validate(connection: sqlite3.Connection, path: str) -> int:
    found = schema.version(connection, path)
    pages, page_size = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
    held = os.stat(path).st_size
    # With a write-ahead log beside it the file may rightly be shorter than the database.
    if not os.path.exists(f"{os.path.realpath(path)}-wal") and held < pages * page_size:
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
    limit_operations(copy, MOST_OPERATIONS)
    connection.backup(copy)
    connection.close()
    # No trigger and no view of a stranger runs while it is upgraded.
    copy.set_authorizer(lambda *action: sqlite3.SQLITE_OK if action[-1] is None else sqlite3.SQLITE_DENY)
    return copy


def bytes_of(path: str) -> int:
    """Apparent size of a database with its journal or log, in which most of a young trace may still be."""
    total, base = 0, os.path.realpath(path)
    for name in (base, f"{base}-wal", f"{base}-journal"):
        with suppress(FileNotFoundError):  # The log comes and goes with its writer.
            total += os.stat(name).st_size
    return total


def _explain(path: str, error: Exception) -> str:
    if "not a database" in str(error):
        return f"{path}: not a gnnstab trace (not an SQLite file)"
    if "locked" in str(error):
        return f"{path}: locked by its writer; try again"
    if "interrupted" in str(error):
        return f"{path}: damaged trace, its tables are described by more rows than gnnstab writes"
    return f"{path}: cannot be read as a trace ({error})"
