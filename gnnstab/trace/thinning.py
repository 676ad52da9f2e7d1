"""Keep a trace within its budget: old steps lose resolution, extremes stay.

Statistics are written at several resolutions from the start (see `gnnstab.trace.pooling`), so thinning them means
deleting old fine rows whose coarser ones are already there. Measures and steps carry a level as well: every second one
has level 0, every fourth level 1, and so on; the lowest level of the older half is deleted. All of it is SQL, so the
thread that runs it holds none of Python's locks, and it is cut into short transactions, so the journal stays short.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from gnnstab.trace.intake import FOREVER
from gnnstab.trace.pooling import FACTOR, LEVELS
from gnnstab.trace.schema import FAR

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


def thin(connection: sqlite3.Connection, block: int, *, thorough: bool = False) -> None:
    """Free up to a quarter of the trace, in transactions of about ``block`` rows.

    With ``thorough`` nearly all of each resolution goes, for a budget that the older half alone cannot meet.
    """
    for table in _worth_it(connection):
        if table == "statistic":
            _thin_statistics(connection, block, thorough)
        else:
            _thin_levels(connection, table, block, thorough)


def _worth_it(connection: sqlite3.Connection) -> list[str]:
    """The tables that hold at least a quarter of the trace; of three, one always does."""
    sizes = {table: _count(connection, table) * width for table, width in ROW_BYTES.items()}
    sizes["measure"] += _one(connection, "SELECT ifnull(sum(length(detail)), 0) FROM measure")
    return [table for table, size in sizes.items() if size and 4 * size >= sum(sizes.values())]


def _thin_statistics(connection: sqlite3.Connection, block: int, thorough: bool) -> None:
    counts = [_count(connection, "statistic", f"level = {level}") for level in range(LEVELS)]
    level = max(range(LEVELS - 1), key=lambda candidate: counts[candidate])
    share = counts[level] - 1 if thorough else counts[level] // 2
    if share < 1:
        return
    stride = FACTOR ** (level + 1)
    rows = f"statistic WHERE level = {level}"
    # Only whole buckets of the next level may go, since that level stands in for them.
    border = _one(connection, f"SELECT step FROM {rows} ORDER BY step LIMIT 1 OFFSET {share}") // stride * stride
    with _transaction(connection):
        connection.execute("UPDATE resolution SET since = max(since, ?) WHERE level = ?", (border, level))
        connection.execute("UPDATE resolution SET until = max(until, ?) WHERE level = ?", (border, level + 1))
    for start, end in _blocks(connection, rows, block, border):
        with _transaction(connection):
            connection.execute(f"DELETE FROM {rows} AND step >= ? AND step < ?", (start, end))


def _thin_levels(connection: sqlite3.Connection, table: str, block: int, thorough: bool) -> None:
    """Delete the lowest levels of the older half until an eighth of the rows is gone."""
    rows = _count(connection, table)
    keep = f"{'number' if table == 'measure' else 'step'} IN (SELECT id FROM temp.kept)"
    connection.execute("CREATE TABLE IF NOT EXISTS temp.kept (id INTEGER PRIMARY KEY)")
    connection.execute("DELETE FROM temp.kept")
    for extremes in _KEEP[table]:
        connection.execute(f"INSERT OR IGNORE INTO temp.kept {extremes}")
    offset = rows - 1 if thorough else rows // 2
    border = _one(connection, f"SELECT step FROM {table} ORDER BY step LIMIT 1 OFFSET {offset}")
    while 8 * _count(connection, table) > 7 * rows:
        old = f"{table} WHERE step < {border} AND level < {FOREVER} AND NOT {keep}"
        lowest = connection.execute(f"SELECT min(level) FROM {old}").fetchone()[0]
        if lowest is None:
            return
        for start, end in _blocks(connection, f"{table} WHERE 1", block, border):
            _rewrite(connection, table, start, end, f"level > {lowest} OR {keep}")


def _blocks(connection: sqlite3.Connection, rows: str, block: int, border: int) -> Iterator[tuple[int, int]]:
    """Ranges of steps, each with about ``block`` of these rows, up to ``border``."""
    start = -FAR
    while start < border:
        row = connection.execute(
            f"SELECT step FROM {rows} AND step >= ? AND step < ? ORDER BY step LIMIT 1 OFFSET {block}", (start, border)
        ).fetchone()
        # `+ 1`: a single step may have more rows than a block.
        end = border if row is None else row[0] + 1
        yield start, end
        start = end


def _rewrite(connection: sqlite3.Connection, table: str, start: int, end: int, keep: str) -> None:
    """Delete all but the rows to keep, and write those anew: deleting every second row would leave half-empty pages."""
    with _transaction(connection):
        connection.execute(
            f"CREATE TEMP TABLE again AS SELECT * FROM {table} WHERE step >= ? AND step < ? AND ({keep})", (start, end)
        )
        connection.execute(f"DELETE FROM {table} WHERE step >= ? AND step < ?", (start, end))
        connection.execute(f"INSERT INTO {table} SELECT * FROM temp.again")
        connection.execute("DROP TABLE temp.again")


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
