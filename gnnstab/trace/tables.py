"""The statements that fill the tables of a trace."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from gnnstab.trace.batch import Batch, Columns, SiteItem
from gnnstab.trace.pooling import LEVELS, coarser, gather

if TYPE_CHECKING:
    from numpy.typing import NDArray

VARIABLES = 32_000 if sqlite3.sqlite_version_info >= (3, 32) else 960
"""Parameters per statement, below SQLite's own limits of 32 766 and 999."""

ROWS_AT_ONCE = 500
"""Rows per INSERT.

Python takes its global lock back after every single statement. With one row per statement the writer thread would wait
for the training thread thousands of times per flush; with many it waits a few times, and costs less than half.
"""

SITES_AT_ONCE = min(ROWS_AT_ONCE, VARIABLES // 9)
"""Site statistics per INSERT; a row has nine parameters."""

# A bucket that is still growing, or a step whose rows arrive apart, is pooled with what is there, never overwritten.
MERGE = """ ON CONFLICT (level, step, series, part) DO UPDATE SET
    rms = CASE WHEN rms IS NULL OR excluded.rms IS NULL THEN NULL
          WHEN count + excluded.count = 0 OR max(rms, excluded.rms) IN (0, 9e999) THEN max(rms, excluded.rms)
          ELSE max(rms, excluded.rms) * sqrt((count * (rms / max(rms, excluded.rms)) * (rms / max(rms, excluded.rms))
             + excluded.count * (excluded.rms / max(rms, excluded.rms)) * (excluded.rms / max(rms, excluded.rms)))
             / (count + excluded.count)) END,
    span = CASE WHEN level = 0 THEN 1 ELSE span + excluded.span END, count = count + excluded.count,
    minimum = min(minimum, excluded.minimum), maximum = max(maximum, excluded.maximum),
    non_finite = CASE WHEN min(non_finite, excluded.non_finite) < 0 THEN -1 ELSE non_finite + excluded.non_finite END"""


def write(connection: sqlite3.Connection, batch: Batch) -> int:
    """Write a batch; return how many site statistics were refused because they were malformed."""
    for table, rows in vars(batch.facts).items():
        _put(connection, f"INSERT OR REPLACE INTO {table}", list(rows.values()))
    events = "step, kind, layer, mode, call, stage, origin, nodes, edges, heads, message, detail"
    _put(connection, f"INSERT INTO event ({events})", list(batch.events))
    _put(connection, "INSERT OR REPLACE INTO step", list(batch.steps))
    _put(connection, "INSERT INTO measure", list(batch.measures))
    return _write_sites(connection, batch.sites)


def _write_sites(connection: sqlite3.Connection, items: Iterable[SiteItem]) -> int:
    rows, refused = gather(items)
    _write_level(connection, rows, 0, "")
    for level in range(1, LEVELS):
        rows = coarser(rows, level)
        _write_level(connection, rows, level, MERGE)
    return refused


def _write_level(connection: sqlite3.Connection, rows: NDArray[np.float64], level: int, tail: str) -> None:
    for start in range(0, len(rows), SITES_AT_ONCE):
        part = rows[start : start + SITES_AT_ONCE]
        places = ",".join([f"({level},?,?,?,?,?,?,?,?,?)"] * len(part))
        statement = f"INSERT INTO statistic VALUES {places}"
        # Whole numbers arrive as floats here; the INTEGER affinity of their columns turns them into integers.
        values = part.ravel().tolist()
        try:
            connection.execute(statement + tail, values)
        except sqlite3.IntegrityError:
            connection.execute(statement + MERGE, values)


def _put(connection: sqlite3.Connection, statement: str, rows: Sequence[Columns]) -> None:
    if not rows:
        return
    width = len(rows[0])
    size = min(ROWS_AT_ONCE, VARIABLES // width)
    for start in range(0, len(rows), size):
        group = rows[start : start + size]
        places = ",".join(["(" + ",".join("?" * width) + ")"] * len(group))
        connection.execute(f"{statement} VALUES {places}", list(chain.from_iterable(group)))
