"""Statistics at several resolutions, and a trace within its budget: old steps lose resolution, extremes stay.

Statistics are written at several resolutions from the start, so thinning them means deleting old fine rows whose coarser
ones are already there. Measures and steps carry a level as well: every second one has level 0, every fourth level 1, and
so on; the lowest level of the older half is deleted. All of the thinning is SQL, so the thread that runs it holds none of
Python's locks, and it is cut into short transactions, so the journal stays short.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from gnnstab.trace._codec import WHOLE_LIMIT, whole
from gnnstab.trace._schema import FACTOR, FAR, LEVELS

if TYPE_CHECKING:
    from numpy.typing import NDArray

SiteRows: TypeAlias = "Sequence[tuple[float, float, float, int, int]] | NDArray[np.float64]"
"""Per series: minimum, maximum, rms, count, non_finite; a sequence of tuples or an array of shape (K, 5)."""

SiteItem = tuple[int, Sequence[int], SiteRows]
"""Step, ids of the series, shape (K,), and their rows."""

FOREVER = 62
"""Level of a row that is never thinned out."""

STEP, SERIES, PART, SPAN, MINIMUM, MAXIMUM, RMS, COUNT, NON_FINITE = range(9)
"""Columns of a matrix of rows, in the order of the table statistic after its level."""


SHARED_SITES = ("weight_grad",)
"""Sites whose rows of level 0 cover up to ``FACTOR`` steps that are written together.

More than half of a step's rows are gradients of single parameters. What they tell step by step, the gradient norm of the
step and the gradients of the activations tell as well, and a non-finite one is named by an event with its step.
"""


def gather(items: Iterable[SiteItem], shared: Collection[int] = ()) -> tuple[NDArray[np.float64], int]:
    """All waiting statistics as one matrix (n, 9) of level 0: one row per step and series, fewer of ``shared`` series.

    Items whose rows do not fit their ids are left out; the second result is how many rows that cost.
    """
    steps: list[int] = []
    ids: list[NDArray[np.float64]] = []
    together: list[NDArray[np.bool_]] = []
    rows: list[NDArray[np.float64]] = []
    refused = 0
    last: Sequence[int] = ()
    those, named, known = list(shared), np.empty(0), np.empty(0, bool)
    newest, apart = -math.inf, True
    for step, names, values in items:
        try:
            array = np.asarray(values, dtype=np.float64)
            if array.shape != (len(names), 5):
                raise ValueError(array.shape)
            step = whole(step)
            if names is not last:  # The same few tuples come again at every step.
                named = np.asarray(names, dtype=np.float64)
                last, known = names, np.isin(named, those)
                apart = apart and len(set(names)) == len(names)
        except (TypeError, ValueError, OverflowError):
            refused += len(names)
            continue
        newest, apart = step, apart and step > newest
        steps.append(step)
        ids.append(named)
        together.append(known)
        rows.append(array)
    if not rows:
        return np.empty((0, 9)), refused
    columns = np.zeros((9, sum(map(len, rows))))
    columns[STEP] = np.repeat(np.asarray(steps, dtype=np.float64), [len(array) for array in rows])
    columns[SERIES] = np.concatenate(ids)
    columns[SPAN] = 1.0
    columns[MINIMUM:] = np.concatenate([array.T for array in rows], axis=1)
    # These two are counts: NULL or Inf in them would make the whole transaction fail.
    for column, unknown in ((COUNT, 0.0), (NON_FINITE, -1.0)):
        if not np.isfinite(columns[column]).all():
            np.nan_to_num(columns[column], copy=False, nan=unknown, posinf=unknown, neginf=unknown)
    matrix, share = columns.T.copy(), np.concatenate(together)
    if not apart:
        matrix = _pool(matrix)
        matrix[:, SPAN] = 1.0  # Several calls for one step are still one step.
        share = np.isin(matrix[:, SERIES], those)
    if share.any():
        alone, common = (matrix.take(np.flatnonzero(one), axis=0) for one in (~share, share))
        matrix = np.concatenate([alone, _pool_steps(common, FACTOR)])
    return matrix.take(np.argsort(_places(matrix, 1), kind="stable"), axis=0), refused


def coarser(rows: NDArray[np.float64], level: int) -> NDArray[np.float64]:
    """Rows of ``level - 1``, or of several flushes, pooled to ``level``: one row per bucket, series and part.

    A bucket starts at a multiple of ``FACTOR ** level`` steps. Its finite rows (part 0) and its rows with NaN or Inf
    (part 1) stay apart, since pooling the two would hide the largest finite value.
    """
    stride = FACTOR**level
    pooled = _pool_steps(rows, stride)
    pooled[:, STEP] = np.floor(pooled[:, STEP] / stride) * stride
    return pooled


@dataclass(frozen=True)
class OpenBuckets:
    """Rows of the coarser levels whose buckets are not over yet: until then the finer level has their steps."""

    newest: float = -math.inf
    """Latest step so far."""

    rows: tuple[NDArray[np.float64], ...] = field(default_factory=lambda: (np.empty((0, 9)),) * (LEVELS - 1))
    """Per level from 1 on, (n, 9)."""

    def add(self, rows: NDArray[np.float64]) -> tuple[list[NDArray[np.float64]], OpenBuckets]:
        """Take in rows of level 0; what is to be written of the levels from 1 on, and what waits then."""
        newest = max(self.newest, rows[:, STEP].max(initial=-math.inf))
        over, waiting = [], []
        for level, kept in enumerate(self.rows, start=1):
            if len(rows):
                kept = coarser(np.concatenate([kept, rows]), level)
            ends = kept[:, STEP] + FACTOR**level <= newest
            rows = kept[ends]
            over.append(rows)
            waiting.append(kept[~ends])
        return over, OpenBuckets(newest, tuple(waiting))


def _pool_steps(rows: NDArray[np.float64], stride: int) -> NDArray[np.float64]:
    """One row per bucket of ``stride`` steps, series and part, at the first step that is in it."""
    columns = rows.T.copy()
    finite = np.isfinite(columns[MINIMUM : RMS + 1])
    columns[PART] = ~(finite[0] & finite[1] & finite[2])
    return _pool(columns.T, stride)


def _pool(rows: NDArray[np.float64], stride: int = 1) -> NDArray[np.float64]:
    """Rows of the same bucket, series and part as one: extremes of extremes, RMS by count, sums of the counts."""
    keys = _places(rows, stride)
    if (keys[1:] > keys[:-1]).all():
        return rows  # Most often: they come in order, each once.
    order = np.argsort(keys, kind="stable")
    # Row by row into their order, then column by column: what is reduced lies in one piece.
    columns, keys = rows.take(order, axis=0).T.copy(), keys.take(order)
    starts = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))
    pooled = columns.take(starts, axis=1)
    pooled[STEP] = np.minimum.reduceat(columns[STEP], starts)
    pooled[SPAN] = np.add.reduceat(columns[SPAN], starts)
    pooled[MINIMUM] = np.minimum.reduceat(columns[MINIMUM], starts)
    pooled[MAXIMUM] = np.maximum.reduceat(columns[MAXIMUM], starts)
    pooled[COUNT] = np.add.reduceat(columns[COUNT], starts)
    pooled[RMS] = _pooled_rms(columns, starts, pooled[COUNT])
    if columns[NON_FINITE].any():
        unknown = np.minimum.reduceat(columns[NON_FINITE], starts) < 0
        pooled[NON_FINITE] = np.where(unknown, -1.0, np.add.reduceat(columns[NON_FINITE], starts))
    found: NDArray[np.float64] = pooled.T
    return found


def _places(rows: NDArray[np.float64], stride: int) -> NDArray[np.float64]:
    """(n,) one number for bucket, series and part of each row, in the order of the three."""
    if not len(rows):
        return np.empty(0)
    bucket = np.floor(rows[:, STEP] / stride)
    bucket -= bucket.min()
    width = 2 * (rows[:, SERIES].max() + 1)
    if bucket.max() * width >= WHOLE_LIMIT:  # Steps so far apart that a float64 would not hold the product.
        bucket = np.unique(bucket, return_inverse=True)[1]
    places: NDArray[np.float64] = bucket * width + 2 * rows[:, SERIES] + rows[:, PART]
    return places


def _pooled_rms(
    columns: NDArray[np.float64], starts: NDArray[np.intp], counts: NDArray[np.float64]
) -> NDArray[np.float64]:
    """RMS over all entries; every square is taken relative to the largest RMS, so that none overflows."""
    rms, largest = columns[RMS], np.maximum.reduceat(columns[RMS], starts)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = rms / np.repeat(largest, np.diff(starts, append=len(rms)))
        pooled = largest * np.sqrt(np.add.reduceat(columns[COUNT] * relative**2, starts) / counts)
    plain = (largest > 0) & np.isfinite(largest) & (counts > 0)
    return np.where(plain, pooled, largest)


def level_of(ordinal: int) -> int:
    """How long the row with this number, from 0, is kept: 0 for every second, 1 for every fourth, …; the first for ever."""
    return FOREVER if ordinal == 0 else (ordinal & -ordinal).bit_length() - 1


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
    sizes = {table: _count(connection, table) * width for table, width in ROW_BYTES.items()}
    sizes["measure"] += _one(connection, "SELECT ifnull(sum(length(detail)), 0) FROM measure")
    # Only tables that hold at least a quarter of the trace are worth it; of three, one always does.
    for table, size in sizes.items():
        if size and 4 * size >= sum(sizes.values()):
            if table == "statistic":
                _thin_statistics(connection, block, thorough)
            else:
                _thin_levels(connection, table, block, thorough)


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
    with transaction(connection):
        connection.execute("UPDATE resolution SET since = max(since, ?) WHERE level = ?", (border, level))
        connection.execute("UPDATE resolution SET until = max(until, ?) WHERE level = ?", (border, level + 1))
    for steps in _blocks(connection, rows, block, border):
        with transaction(connection):
            connection.execute(f"DELETE FROM {rows} AND step >= ? AND step < ?", steps)


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
        for steps in _blocks(connection, f"{table} WHERE 1", block, border):
            # The rows to keep are written anew: deleting every second row would leave half-empty pages.
            rows_there = f"{table} WHERE step >= ? AND step < ?"
            kept = f"SELECT * FROM {rows_there} AND (level > {lowest} OR {keep})"
            with transaction(connection):
                connection.execute(f"CREATE TEMP TABLE again AS {kept}", steps)
                connection.execute(f"DELETE FROM {rows_there}", steps)
                connection.execute(f"INSERT INTO {table} SELECT * FROM temp.again")
                connection.execute("DROP TABLE temp.again")


def _blocks(connection: sqlite3.Connection, rows: str, block: int, border: int) -> Iterator[tuple[int, int]]:
    """Ranges of steps, each with about ``block`` of these rows, up to ``border``."""
    start = -FAR
    while start < border:
        query = f"SELECT step FROM {rows} AND step >= ? AND step < ? ORDER BY step LIMIT 1 OFFSET {block}"
        row = connection.execute(query, (start, border)).fetchone()
        # `+ 1`: a single step may have more rows than a block.
        end = border if row is None else row[0] + 1
        yield start, end
        start = end


def _count(connection: sqlite3.Connection, table: str, condition: str = "1") -> int:
    return _one(connection, f"SELECT count(*) FROM {table} WHERE {condition}")


def _one(connection: sqlite3.Connection, query: str) -> int:
    return int(connection.execute(query).fetchone()[0])


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All of the block in the file, or after an error nothing of it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
