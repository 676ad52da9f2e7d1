"""Site statistics and steps as numpy arrays."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

from gnnstab.errors import TraceError
from gnnstab.trace._connection import MOST_ROWS, Connection
from gnnstab.trace._schema import FACTOR, LEVELS

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_LEVELS = 16
"""Levels of resolution that are read; each is one query over all statistics."""

SITE_DTYPE = np.dtype(
    [
        ("step", np.int64),
        ("span", np.int64),
        ("minimum", np.float64),
        ("maximum", np.float64),
        ("rms", np.float64),
        ("count", np.int64),
        ("non_finite", np.int64),
        ("rank", np.int32),
    ]
)
"""One row of `Trace.sites`; the fields of `SiteRow` and the rank (-1 outside a distributed run)."""

STEP_DTYPE = np.dtype(
    [
        ("step", np.int64),
        ("time", np.float64),
        ("loss", np.float64),
        ("lr", np.float64),
        ("scale", np.float64),
        ("grad_norm", np.float64),
        ("skipped", np.bool_),
        ("rank", np.int32),
    ]
)
"""One row of `Trace.step_arrays`; what is not known is NaN."""


def read_sites(
    connection: Connection, series: Collection[int] | None, rank: int, points: int | None = None
) -> dict[int, NDArray[np.void]]:
    """All statistics of these series (None: of all) by id, each an array of `SITE_DTYPE` in order of steps.

    ``points``: see `Trace.sites`.
    """
    chosen = "" if series is None else f" AND series IN ({', '.join(str(int(i)) for i in series)})"
    left = MOST_ROWS
    ids: list[NDArray[np.int64]] = []
    parts: list[NDArray[np.void]] = []
    for level, since, until in _resolutions(connection, points):
        query = (
            "SELECT series, step, span, minimum, maximum, rms, count, non_finite FROM statistic "
            f"WHERE level = ? AND step >= ? AND step < ?{chosen}"
        )
        for chunk in connection.numbers(query, (level, since, until), left):
            left -= len(chunk)
            part, numbers = _structured(connection, chunk, rank)
            parts.append(part)
            ids.append(numbers)
    if not parts:
        return {}
    numbers, rows = np.concatenate(ids), np.concatenate(parts)
    ids.clear()
    parts.clear()  # Half of all the memory that this takes.
    return _split(numbers, rows)


def _resolutions(connection: Connection, points: int | None) -> list[tuple[int, int, int]]:
    """(level, since, until) from the oldest steps to the latest."""
    levels = connection.rows("SELECT level, since, until FROM resolution", most=MOST_LEVELS)
    if any(not isinstance(value, int) for row in levels for value in row):
        raise TraceError(f"{connection.path}: damaged trace, a level of resolution is no number")
    levels.sort(reverse=True)
    if points is None:
        return [(level, since, until) for level, since, until in levels]
    # One search of the primary key for each; min and max over all levels would read the whole table.
    ends = [
        connection.rows(f"SELECT step FROM statistic WHERE level = ? ORDER BY step {order} LIMIT 1", (level,))
        for level, _, _ in levels
        for order in ("ASC", "DESC")
    ]
    steps = [rows[0][0] for rows in ends if rows and isinstance(rows[0][0], int)]
    first, last = min(steps, default=0), max(steps, default=0)
    old = last + 1 - points - first
    chosen = next((level for level in range(LEVELS) if old <= points * FACTOR**level), LEVELS - 1)
    # Whole rows of the coarse level, so that no step is in two rows.
    border = (last + 1 - points) // FACTOR**chosen * FACTOR**chosen
    return [
        (
            level,
            since if level >= chosen else max(since, border),
            until if level != chosen else max(until, border),
        )
        for level, since, until in levels
    ]


def _structured(
    connection: Connection, chunk: list[tuple[object, ...]], rank: int
) -> tuple[NDArray[np.void], NDArray[np.int64]]:
    matrix = _matrix(connection, chunk)
    _check_whole(connection, matrix[:, [0, 1, 2, 6, 7]])
    part = np.empty(len(matrix), dtype=SITE_DTYPE)
    for column, name in enumerate(("step", "span", "minimum", "maximum", "rms", "count", "non_finite"), start=1):
        part[name] = matrix[:, column]
    part["rank"] = rank
    return part, matrix[:, 0].astype(np.int64)


def read_steps(connection: Connection, rank: int) -> NDArray[np.void]:
    """The training steps as an array of `STEP_DTYPE`."""
    parts = [np.empty(0, dtype=STEP_DTYPE)]
    for chunk in connection.numbers("SELECT step, time, loss, lr, scale, grad_norm, skipped FROM step"):
        matrix = _matrix(connection, chunk)
        _check_whole(connection, matrix[:, [0, 6]])
        part = np.empty(len(matrix), dtype=STEP_DTYPE)
        for column, name in enumerate(("step", "time", "loss", "lr", "scale", "grad_norm", "skipped")):
            part[name] = matrix[:, column]
        part["rank"] = rank
        parts.append(part)
    rows = np.concatenate(parts)
    return rows[np.argsort(rows["step"], kind="stable")]


def _matrix(connection: Connection, chunk: list[tuple[object, ...]]) -> NDArray[np.float64]:
    try:
        return np.array(chunk, dtype=np.float64)  # None, SQLite's NULL, becomes NaN here, and so does the text "nan".
    except (TypeError, ValueError) as error:
        raise TraceError(f"{connection.path}: damaged trace, a number is none ({error})") from error


def _check_whole(connection: Connection, columns: NDArray[np.float64]) -> None:
    if not np.all(np.abs(columns) < 2.0**62):
        raise TraceError(f"{connection.path}: damaged trace, a step or a count is missing or out of range")


def _split(ids: NDArray[np.int64], rows: NDArray[np.void]) -> dict[int, NDArray[np.void]]:
    order = np.argsort(ids, kind="stable")
    ids, rows = ids[order], rows[order]
    starts = np.flatnonzero(np.r_[True, ids[1:] != ids[:-1]])
    ends = np.r_[starts[1:], len(ids)]
    return {int(ids[start]): rows[start:end] for start, end in zip(starts, ends, strict=True)}


def join_ranks(arrays: list[NDArray[np.void]]) -> NDArray[np.void]:
    """The rows of several ranks in order of steps, and of ranks within a step."""
    if len(arrays) == 1:
        return arrays[0]
    rows = np.concatenate(arrays)
    return rows[np.lexsort((rows["rank"], rows["step"]))]
