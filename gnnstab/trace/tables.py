"""The statements that fill the tables of a trace."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

from gnnstab.records import Event, Measure, StepRow
from gnnstab.trace.batch import Facts, SiteItem, flat_chunks, site_matrix
from gnnstab.trace.codec import clean, event_to_columns, facts_to_json, number_to_column

VARIABLES = 32_000 if sqlite3.sqlite_version_info >= (3, 32) else 960
"""Parameters per statement, below SQLite's own limits of 32 766 and 999."""

ROWS_AT_ONCE = 500
"""Rows per INSERT.

Python takes its global lock back after every single statement. With one row per statement the writer thread would wait
for the training thread thousands of times per flush; with many it waits a few times, and costs less than half.
"""

# Rows of one step and series that arrive apart (several flushes within one step) are pooled, never overwritten.
MERGE = """ ON CONFLICT (step, series) DO UPDATE SET
    rms = CASE WHEN rms IS NULL OR excluded.rms IS NULL THEN NULL
          WHEN count + excluded.count = 0 OR max(rms, excluded.rms) IN (0, 9e999) THEN max(rms, excluded.rms)
          ELSE max(rms, excluded.rms) * sqrt((count * (rms / max(rms, excluded.rms)) * (rms / max(rms, excluded.rms))
             + excluded.count * (excluded.rms / max(rms, excluded.rms)) * (excluded.rms / max(rms, excluded.rms)))
             / (count + excluded.count)) END,
    minimum = min(minimum, excluded.minimum), maximum = max(maximum, excluded.maximum), count = count + excluded.count,
    non_finite = CASE WHEN min(non_finite, excluded.non_finite) < 0 THEN -1 ELSE non_finite + excluded.non_finite END"""


def write_facts(connection: sqlite3.Connection, facts: Facts) -> None:
    """Write or overwrite what is known of the run as a whole."""
    _put(connection, "meta", [(clean(key), clean(value)) for key, value in facts.meta.items()])
    _put(
        connection,
        "layer",
        [(clean(f.name), f.position, clean(f.kind), facts_to_json(f)) for f in facts.layers.values()],
    )
    _put(connection, "blind", [(clean(b.layer), clean(b.site), clean(b.reason)) for b in facts.blind.values()])
    series = [(i, clean(k.layer), clean(k.mode), k.call, clean(k.site)) for i, k in facts.series.items()]
    _put(connection, "series", series)
    quantities = [
        (i, clean(layer), clean(mode), call, clean(name), head)
        for i, (layer, mode, call, name, head) in facts.quantities.items()
    ]
    _put(connection, "quantity", quantities)


def write_events(connection: sqlite3.Connection, events: Iterable[Event]) -> None:
    """Append events."""
    columns = "step, kind, layer, mode, call, stage, origin, nodes, edges, heads, message, detail"
    _put(connection, f"event ({columns})", [event_to_columns(event) for event in events])


def write_sites(connection: sqlite3.Connection, items: Iterable[SiteItem]) -> int:
    """Append site statistics; return how many rows were refused because they were malformed."""
    matrix, refused = site_matrix(items)
    width = matrix.shape[1]
    for start in range(0, len(matrix), ROWS_AT_ONCE):
        block = matrix[start : start + ROWS_AT_ONCE]
        rows_at_once = min(len(block), VARIABLES // width)
        for offset in range(0, len(block), rows_at_once):
            part = block[offset : offset + rows_at_once]
            # Whole numbers arrive as floats here; the INTEGER affinity of their columns turns them into integers.
            values = part.ravel().tolist()
            statement = f"INSERT INTO statistic VALUES {_places(len(part), width)}"
            try:
                connection.execute(statement, values)
            except sqlite3.IntegrityError:
                connection.execute(statement + MERGE, values)
    return refused


def write_steps(connection: sqlite3.Connection, rows: Iterable[StepRow]) -> None:
    """Append training steps; a step that is given twice keeps its last row."""
    columns = [
        (r.step, *map(number_to_column, (r.time, r.loss, r.lr, r.scale, r.grad_norm)), int(r.skipped)) for r in rows
    ]
    _put(connection, "step", columns)


def write_measures(connection: sqlite3.Connection, rows: Iterable[tuple[int, Measure]]) -> None:
    """Append measures, each with the id of its quantity."""
    columns = [(m.step, quantity, m.value, clean(m.detail) if m.detail else None) for quantity, m in rows]
    _put(connection, "measure (step, quantity, value, detail)", columns, verb="INSERT")


def _put(
    connection: sqlite3.Connection, table: str, rows: Sequence[tuple[Any, ...]], verb: str = "INSERT OR REPLACE"
) -> None:
    if not rows:
        return
    width = len(rows[0])
    for count, values in flat_chunks(rows, min(ROWS_AT_ONCE, VARIABLES // width)):
        connection.execute(f"{verb} INTO {table} VALUES {_places(count, width)}", values)


def _places(rows: int, width: int) -> str:
    return ",".join(["(" + ",".join("?" * width) + ")"] * rows)
