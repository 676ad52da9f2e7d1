"""Keep a trace within its budget: old steps lose resolution, extremes stay.

Statistics are written at several resolutions from the start (see `gnnstab.trace.pooling`), so thinning them means
deleting old fine rows whose coarser ones are already there. Measures and steps carry a level as well: every second one
has level 0, every fourth level 1, and so on; the lower levels of the older part are deleted. All of it is SQL, so the
thread that runs it holds none of Python's locks, and it is cut into short transactions, so the journal stays short.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from gnnstab.trace.pooling import FACTOR, LEVELS

BLOCK_ROWS = 20_000
"""Statistics that are deleted in one transaction."""

ROW_BYTES = {"statistic": 49, "measure": 48, "step": 50}
"""Bytes per row, as measured, without the JSON of a measure; used only to find the tables worth thinning."""

_KEEP = {
    "measure": (
        "SELECT number FROM (SELECT number, max(value) FROM measure GROUP BY quantity)",
        "SELECT number FROM (SELECT number, min(value) FROM measure GROUP BY quantity)",
    ),
    "step": (
        "SELECT step FROM (SELECT step, max(loss) FROM step WHERE typeof(loss) IN ('real', 'integer'))",
        "SELECT step FROM (SELECT step, min(loss) FROM step WHERE typeof(loss) IN ('real', 'integer'))",
        "SELECT step FROM (SELECT step, max(grad_norm) FROM step WHERE typeof(grad_norm) IN ('real', 'integer'))",
    ),
}
"""The extremes of every stream. NULL, which stands for NaN, is no extreme; the first of those has the highest level."""


def thin(connection: sqlite3.Connection, *, thorough: bool = False) -> None:
    """Free about a quarter of the trace.

    With ``thorough`` nearly all of each resolution goes, for a budget that the older half alone cannot meet.
    """
    for table in _worth_it(connection):
        if table == "statistic":
            _thin_statistics(connection, thorough)
        else:
            _thin_levels(connection, table, thorough)


def _worth_it(connection: sqlite3.Connection) -> list[str]:
    """The tables that hold at least a quarter of the trace; of three, one always does."""
    sizes = {table: _count(connection, table) * width for table, width in ROW_BYTES.items()}
    sizes["measure"] += _one(connection, "SELECT ifnull(sum(length(detail)), 0) FROM measure")
    return [table for table, size in sizes.items() if size and 4 * size >= sum(sizes.values())]


def _thin_statistics(connection: sqlite3.Connection, thorough: bool) -> None:
    counts = [_count(connection, "statistic", f"level = {level}") for level in range(LEVELS)]
    level = max(range(LEVELS - 1), key=lambda candidate: counts[candidate])
    share = counts[level] - 1 if thorough else counts[level] // 2
    if share < 1:
        return
    stride = FACTOR ** (level + 1)
    # Only whole buckets of the next level may go, since that level stands in for them.
    border = _step_at(connection, level, share) // stride * stride
    with _transaction(connection):
        connection.execute("UPDATE resolution SET since = max(since, ?) WHERE level = ?", (border, level))
        connection.execute("UPDATE resolution SET until = max(until, ?) WHERE level = ?", (border, level + 1))
    _delete_until(connection, level, border)


def _delete_until(connection: sqlite3.Connection, level: int, border: int) -> None:
    while True:
        row = connection.execute(
            f"SELECT step FROM statistic WHERE level = ? AND step < ? ORDER BY step LIMIT 1 OFFSET {BLOCK_ROWS}",
            (level, border),
        ).fetchone()
        # `+ 1`: a single step may have more rows than a block.
        end = border if row is None else row[0] + 1
        with _transaction(connection):
            connection.execute("DELETE FROM statistic WHERE level = ? AND step < ?", (level, min(end, border)))
        if row is None:
            return


def _thin_levels(connection: sqlite3.Connection, table: str, thorough: bool) -> None:
    """Delete level 0 of the older half, level 1 of the oldest quarter, level 2 of the oldest eighth, …"""
    rows = _count(connection, table)
    identity = "number" if table == "measure" else "step"
    with _transaction(connection):
        connection.execute("CREATE TABLE IF NOT EXISTS temp.kept (id INTEGER PRIMARY KEY)")
        connection.execute("DELETE FROM temp.kept")
        for extremes in _KEEP[table]:
            connection.execute(f"INSERT OR IGNORE INTO temp.kept {extremes}")
        for level in range(20):
            offset = rows // 2**level - 1 if thorough else rows // 2 ** (level + 1)
            border = connection.execute(
                f"SELECT step FROM {table} ORDER BY step LIMIT 1 OFFSET {max(offset, 0)}"
            ).fetchone()
            if border is None or offset < 8:
                return
            connection.execute(
                f"DELETE FROM {table} WHERE level = ? AND step < ? AND {identity} NOT IN (SELECT id FROM temp.kept)",
                (level, border[0]),
            )


def _step_at(connection: sqlite3.Connection, level: int, offset: int) -> int:
    query = f"SELECT step FROM statistic WHERE level = {level} ORDER BY step LIMIT 1 OFFSET {offset}"
    return _one(connection, query)


def _count(connection: sqlite3.Connection, table: str, condition: str = "1") -> int:
    return _one(connection, f"SELECT count(*) FROM {table} WHERE {condition}")


def _one(connection: sqlite3.Connection, query: str) -> int:
    return int(connection.execute(query).fetchone()[0])


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
