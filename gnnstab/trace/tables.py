"""The statements that fill the tables of a trace."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from gnnstab.trace.batch import Batch, Columns
from gnnstab.trace.pooling import Waiting, gather

if TYPE_CHECKING:
    from numpy.typing import NDArray

VARIABLES = 32_000 if sqlite3.sqlite_version_info >= (3, 32) else 960
"""Parameters per statement, below SQLite's own limits of 32 766 and 999."""

AT_ONCE = (128, 32, 8, 1)
"""Rows per INSERT.

Python takes its global lock back after every single statement. With one row per statement the writer thread would wait
for the training thread thousands of times per flush; with many it waits a few times, and costs less than half. A few
fixed sizes, so that no statement is parsed twice.
"""

# A step whose rows arrive apart, or late, is pooled with what is there, never overwritten.
MERGE = """ ON CONFLICT (level, step, series, part) DO UPDATE SET
    rms = CASE WHEN rms IS NULL OR excluded.rms IS NULL THEN NULL
          WHEN count + excluded.count = 0 OR max(rms, excluded.rms) IN (0, 9e999) THEN max(rms, excluded.rms)
          ELSE max(rms, excluded.rms) * sqrt((count * (rms / max(rms, excluded.rms)) * (rms / max(rms, excluded.rms))
             + excluded.count * (excluded.rms / max(rms, excluded.rms)) * (excluded.rms / max(rms, excluded.rms)))
             / (count + excluded.count)) END,
    span = CASE WHEN level = 0 THEN max(span, excluded.span) ELSE span + excluded.span END, count = count + excluded.count,
    minimum = min(minimum, excluded.minimum), maximum = max(maximum, excluded.maximum),
    non_finite = CASE WHEN min(non_finite, excluded.non_finite) < 0 THEN -1 ELSE non_finite + excluded.non_finite END"""


def write(connection: sqlite3.Connection, batch: Batch, waiting: Waiting) -> tuple[int, Waiting]:
    """Write a batch; return how many malformed site statistics were refused, and what waits to be pooled from then on."""
    for table, rows in vars(batch.facts).items():
        _put(connection, f"INSERT OR REPLACE INTO {table}", list(rows.values()))
    events = "step, kind, layer, mode, call, stage, origin, nodes, edges, heads, message, detail"
    _put(connection, f"INSERT INTO event ({events})", list(batch.events))
    _put(connection, "INSERT OR REPLACE INTO step", list(batch.steps))
    _put(connection, "INSERT INTO measure", list(batch.measures))
    finest, refused = gather(batch.sites, batch.shared)
    _write_level(connection, finest, 0, "")
    pooled, waiting = waiting.add(finest)
    for level, matrix in enumerate(pooled, start=1):
        _write_level(connection, matrix, level, MERGE)
    return refused, waiting


def _write_level(connection: sqlite3.Connection, rows: NDArray[np.float64], level: int, tail: str) -> None:
    row = f"({level},{','.join('?' * (rows.shape[1]))})"
    # Whole numbers arrive as floats here; the INTEGER affinity of their columns turns them into integers.
    for size, values in _groups(rows.ravel().tolist(), rows.shape[1]):
        try:
            connection.execute(_insert("INSERT INTO statistic", row, size, tail), values)
        except sqlite3.IntegrityError:
            connection.execute(_insert("INSERT INTO statistic", row, size, MERGE), values)


def _put(connection: sqlite3.Connection, statement: str, rows: Sequence[Columns]) -> None:
    if not rows:
        return
    row = f"({','.join('?' * len(rows[0]))})"
    for size, values in _groups(list(chain.from_iterable(rows)), len(rows[0])):
        connection.execute(_insert(statement, row, size), values)


def _groups(values: list[Any], width: int) -> Iterator[tuple[int, list[Any]]]:
    """The rows, one after the other, cut into groups of the sizes that there are statements for."""
    start = 0
    for size in AT_ONCE:
        if size * width > VARIABLES:
            continue
        while len(values) - start >= size * width:
            yield size, values[start : start + size * width]
            start += size * width


@cache
def _insert(statement: str, row: str, size: int, tail: str = "") -> str:
    return f"{statement} VALUES {','.join([row] * size)}{tail}"
