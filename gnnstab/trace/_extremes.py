"""The largest values of a run with their steps; those of single entries stay exact however long the run was."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from gnnstab.errors import TraceError

if TYPE_CHECKING:
    from gnnstab.trace._connection import Connection


class Peak(NamedTuple):
    """The largest finite value of one series over a run."""

    value: float
    step: int
    """The step at which it was recorded, the first one of several."""

    span: int
    """Steps from ``step`` on among which it lies: 1 unless the trace has halved its old steps since."""


_LARGEST = {
    "size": "max(-a.minimum, a.maximum)",
    "rms": "a.rms",
}


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
