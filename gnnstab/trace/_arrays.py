"""Site statistics and steps as numpy arrays, and the largest values of a run with their steps."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gnnstab.errors import TraceError
from gnnstab.trace._connection import MOST_ROWS, Connection
from gnnstab.trace._schema import FACTOR, LEVELS

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_LEVELS = 16
"""Levels of resolution that are read; each is one query over all statistics."""

SITE_COLUMNS = ("step", "span", "minimum", "maximum", "rms", "count", "non_finite")
SITE_DTYPE = np.dtype([*zip(SITE_COLUMNS, ("i8", "i8", "f8", "f8", "f8", "i8", "i8"), strict=True), ("rank", "i4")])
"""One row of `Trace.sites`: statistics of one site, merged over the outer forwards of one step, of ``span`` steps once the trace has halved
old ones; ``non_finite`` is -1 when only known to be at least one, ``rank`` -1 outside a distributed run."""

STEP_COLUMNS = ("step", "time", "loss", "lr", "scale", "grad_norm", "skipped")
STEP_DTYPE = np.dtype([*zip(STEP_COLUMNS, ("i8", "f8", "f8", "f8", "f8", "f8", "?"), strict=True), ("rank", "i4")])
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
        columns, where = ", ".join(SITE_COLUMNS), f"level = ? AND step >= ? AND step < ?{chosen}"
        query = f"SELECT series, {columns} FROM statistic WHERE {where}"
        for chunk in connection.numbers(query, (level, since, until), left):
            left -= len(chunk)
            matrix = _matrix(connection, chunk)
            parts.append(_structured(connection, matrix[:, 1:], SITE_DTYPE, rank))
            ids.append(_whole(connection, matrix[:, 0]).astype(np.int64))
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
        (level, max(since, border) if level < chosen else since, max(until, border) if level == chosen else until)
        for level, since, until in levels
    ]


def read_steps(connection: Connection, rank: int) -> NDArray[np.void]:
    """The training steps as an array of `STEP_DTYPE`."""
    query = f"SELECT {', '.join(STEP_COLUMNS)} FROM step"
    parts = [np.empty(0, dtype=STEP_DTYPE)]
    # A loop ends its generator, which must be over before the connection is, at the first error; a comprehension does not.
    for chunk in connection.numbers(query):
        parts += [_structured(connection, _matrix(connection, chunk), STEP_DTYPE, rank)]
    rows = np.concatenate(parts)
    return rows[np.argsort(rows["step"], kind="stable")]


def _structured(
    connection: Connection, matrix: NDArray[np.float64], dtype: np.dtype[np.void], rank: int
) -> NDArray[np.void]:
    """The columns under the names of ``dtype``, and the rank as the last."""
    part = np.empty(len(matrix), dtype=dtype)
    for column, name in enumerate((dtype.names or ())[:-1]):
        values = matrix[:, column]
        part[name] = values if dtype[name].kind == "f" else _whole(connection, values)
    part["rank"] = rank
    return part


def _matrix(connection: Connection, chunk: list[tuple[object, ...]]) -> NDArray[np.float64]:
    try:
        return np.array(chunk, dtype=np.float64)  # None, SQLite's NULL, becomes NaN here, and so does the text "nan".
    except (TypeError, ValueError) as error:
        raise TraceError(f"{connection.path}: damaged trace, a number is none ({error})") from error


def _whole(connection: Connection, values: NDArray[np.float64]) -> NDArray[np.float64]:
    if not np.all(np.abs(values) < 2.0**62):
        raise TraceError(f"{connection.path}: damaged trace, a step or a count is missing or out of range")
    return values


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


class Peak(NamedTuple):
    """The largest finite value of one series over a run."""

    value: float
    step: int
    """The step at which it was recorded, the first one of several."""

    span: int
    """Steps from ``step`` on among which it lies: 1 unless the trace has halved its old steps since."""


_LARGEST = {"size": "max(-a.minimum, a.maximum)", "rms": "a.rms"}


def read_peaks(connection: Connection, measure: str) -> dict[int, Peak]:
    """Series id → its largest ``size`` (of any entry) or ``rms``; Inf and NaN are left out, they are events of their own.

    Raises `TraceError` for a damaged row.
    """
    value = _LARGEST[measure]
    # Of the row that max() picks, SQLite returns the other columns as well; 9e999 is its way to write Inf.
    query = (
        f"SELECT a.series, max({value}), a.step, r.stride FROM resolution r JOIN statistic a "
        f"ON a.level = r.level AND a.step >= r.since AND a.step < r.until WHERE {value} < 9e999 GROUP BY a.series"
    )
    found: dict[int, Peak] = {}
    for series, peak, step, span in (row for chunk in connection.numbers(query) for row in chunk):
        if not (isinstance(peak, (int, float)) and all(isinstance(n, int) for n in (series, step, span))):
            raise TraceError(f"{connection.path}: damaged trace, a number is none")
        found[series] = Peak(float(peak), step, span)
    return found
