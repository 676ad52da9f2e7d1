"""Keep a trace within its budget: halve the resolution of old steps, and never lose an extreme.

All of it is SQL, so that the thread that runs it holds none of Python's locks, cut into blocks of steps that each take
a transaction of their own, so that recording goes on in between and neither memory nor the journal grows.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

BLOCK_ROWS = 40_000
"""Rows that are halved in one transaction."""

SPARSE = 4
"""A stream with less than 1/SPARSE of the rows of the densest one keeps its resolution: halving it would free little."""

ROW_BYTES = {"statistic": 46, "measure": 40, "step": 48}
"""Bytes per row, as measured, without the JSON of a measure; used only to find the largest table."""

_FINITE = "minimum > -9e999 AND maximum < 9e999 AND rms < 9e999"

# Pairs are made within the finite and within the non-finite rows of a series: pooling NaN or Inf with a neighbour would
# hide the neighbour's maximum. `next_step` is NULL where a row has no partner.
_PAIRS = f"""
INSERT INTO temp.halved
SELECT step, series, span + ifnull(span2, 0),
    CASE WHEN step2 IS NULL THEN minimum ELSE min(minimum, minimum2) END,
    CASE WHEN step2 IS NULL THEN maximum ELSE max(maximum, maximum2) END,
    CASE WHEN step2 IS NULL THEN rms
         WHEN rms IS NULL OR rms2 IS NULL THEN NULL
         WHEN count + count2 = 0 OR max(rms, rms2) IN (0, 9e999) THEN max(rms, rms2)
         ELSE max(rms, rms2) * sqrt((count * (rms / max(rms, rms2)) * (rms / max(rms, rms2))
            + count2 * (rms2 / max(rms, rms2)) * (rms2 / max(rms, rms2))) / (count + count2)) END,
    count + ifnull(count2, 0),
    CASE WHEN non_finite < 0 OR non_finite2 < 0 THEN -1 ELSE non_finite + ifnull(non_finite2, 0) END
FROM (SELECT *, row_number() OVER stream AS place, lead(step) OVER stream AS step2, lead(span) OVER stream AS span2,
        lead(minimum) OVER stream AS minimum2, lead(maximum) OVER stream AS maximum2, lead(rms) OVER stream AS rms2,
        lead(count) OVER stream AS count2, lead(non_finite) OVER stream AS non_finite2
    FROM statistic WHERE step >= ? AND step < ? AND series NOT IN (SELECT id FROM temp.sparse)
    WINDOW stream AS (PARTITION BY series, ifnull({_FINITE}, 0) ORDER BY step))
WHERE place % 2 = 1
"""

_EXTREMES = """
INSERT OR IGNORE INTO temp.kept SELECT id FROM (SELECT id, max(value) FROM measure GROUP BY quantity);
INSERT OR IGNORE INTO temp.kept SELECT id FROM (SELECT id, min(value) FROM measure GROUP BY quantity);
"""

_THIN_MEASURES = """
DELETE FROM measure WHERE id IN (
    SELECT id FROM (SELECT id, row_number() OVER (PARTITION BY quantity, value IS NULL ORDER BY step, id) AS place
        FROM measure WHERE step < ? AND quantity NOT IN (SELECT id FROM temp.sparse))
    WHERE place % 2 = 0 AND id NOT IN (SELECT id FROM temp.kept))
"""

# Steps of a rare kind (skipped, NaN or Inf) form streams of their own, so the first of each kind always stays.
_THIN_STEPS = """
DELETE FROM step WHERE step IN (
    SELECT step FROM (SELECT step, row_number() OVER
            (PARTITION BY skipped, typeof(loss), typeof(grad_norm), abs(loss) = 9e999, abs(grad_norm) = 9e999 ORDER BY step)
        AS place FROM step WHERE step < ?)
    WHERE place % 2 = 0 AND step NOT IN (SELECT id FROM temp.kept))
"""

_STEP_EXTREMES = """
INSERT OR IGNORE INTO temp.kept
    SELECT step FROM (SELECT step, max(loss) FROM step WHERE typeof(loss) <> 'text')
    UNION SELECT step FROM (SELECT step, min(loss) FROM step)
    UNION SELECT step FROM (SELECT step, max(grad_norm) FROM step WHERE typeof(grad_norm) <> 'text');
"""

_SCRATCH = """
CREATE TABLE IF NOT EXISTS temp.halved (step, series, span, minimum, maximum, rms, count, non_finite);
CREATE TABLE IF NOT EXISTS temp.kept (id INTEGER PRIMARY KEY);
CREATE TABLE IF NOT EXISTS temp.sparse (id INTEGER PRIMARY KEY);
"""


def halve(connection: sqlite3.Connection, *, everything: bool = False) -> Iterator[None]:
    """Halve the older half of all streams; yield after every transaction, outside of one.

    With ``everything`` the newest rows are halved as well, for a budget that the older half alone cannot meet.
    """
    connection.executescript(_SCRATCH)
    border = _border(connection, everything)
    _choose_sparse(connection, "statistic", "series")
    yield from _halve_statistics(connection, border)
    _choose_sparse(connection, "measure", "quantity")
    _thin(connection, _EXTREMES, _THIN_MEASURES, border)
    yield
    _thin(connection, _STEP_EXTREMES, _THIN_STEPS, border)
    yield


def _border(connection: sqlite3.Connection, everything: bool) -> int:
    """The step that parts old from new: the middle of the table that takes the most room."""
    sizes = {name: _count(connection, name) * width for name, width in ROW_BYTES.items()}
    sizes["measure"] += int(connection.execute("SELECT ifnull(sum(length(detail)), 0) FROM measure").fetchone()[0])
    largest = max(sizes, key=lambda name: sizes[name])
    if everything:
        row = connection.execute(f"SELECT max(step) + 1 FROM {largest}").fetchone()
    else:
        middle = _count(connection, largest) // 2
        row = connection.execute(f"SELECT step FROM {largest} ORDER BY step LIMIT 1 OFFSET {middle}").fetchone()
    return int(row[0]) if row and row[0] is not None else 0


def _choose_sparse(connection: sqlite3.Connection, table: str, stream: str) -> None:
    connection.execute("DELETE FROM temp.sparse")
    connection.execute(
        f"WITH size AS (SELECT {stream} AS id, count(*) AS n FROM {table} GROUP BY {stream}) "
        f"INSERT INTO temp.sparse SELECT id FROM size WHERE n * {SPARSE} < (SELECT max(n) FROM size)"
    )


def _halve_statistics(connection: sqlite3.Connection, border: int) -> Iterator[None]:
    row = connection.execute("SELECT min(step) FROM statistic").fetchone()
    start = row[0]
    while start is not None and start < border:
        following = connection.execute(
            f"SELECT step FROM statistic WHERE step >= ? AND step < ? ORDER BY step LIMIT 1 OFFSET {BLOCK_ROWS}",
            (start, border),
        ).fetchone()
        # A single step with more rows than a block is taken whole.
        end = border if following is None else max(following[0], start + 1)
        _halve_block(connection, start, end)
        start = end
        yield


def _halve_block(connection: sqlite3.Connection, start: int, end: int) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute("DELETE FROM temp.halved")
        connection.execute(_PAIRS, (start, end))
        connection.execute(
            "DELETE FROM statistic WHERE step >= ? AND step < ? AND series NOT IN (SELECT id FROM temp.sparse)",
            (start, end),
        )
        connection.execute("INSERT INTO statistic SELECT * FROM temp.halved ORDER BY step, series")
        connection.execute("DELETE FROM temp.halved")
        connection.execute("COMMIT")
    except BaseException:
        _leave(connection)
        raise


def _thin(connection: sqlite3.Connection, extremes: str, deletion: str, border: int) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute("DELETE FROM temp.kept")
        for statement in extremes.strip().split(";"):
            if statement:
                connection.execute(statement)
        connection.execute(deletion, (border,))
        connection.execute("COMMIT")
    except BaseException:
        _leave(connection)
        raise


def _leave(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        connection.execute("ROLLBACK")


def _count(connection: sqlite3.Connection, table: str) -> int:
    return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
