"""Rows that the tables hold and that no reading of a whole trace would give, and losses that are not finite."""

from __future__ import annotations

from gnnstab.trace._connection import Connection
from gnnstab.trace._schema import FAR

_MODES = "('train', 'train-nograd', 'eval', 'eval-grad', '')"

_OF_NO_SERIES = f"series NOT IN (SELECT id FROM series WHERE mode IN {_MODES})"
_IMPOSSIBLE = "span < 1 OR count < 0 OR non_finite < -1"


def doubtful_rows(connection: Connection) -> int:
    """Statistics of no series or of a mode that there is none of, of fewer than no steps or entries, or between the levels of
    resolution, and measures of such a mode: a writer makes none of them."""
    queries: list[tuple[str, tuple[int, ...]]] = [
        (f"SELECT count(*) FROM statistic WHERE {_OF_NO_SERIES} OR {_IMPOSSIBLE}", ()),
        (f"SELECT count(*) FROM measure WHERE quantity IN (SELECT id FROM quantity WHERE mode NOT IN {_MODES})", ()),
        *(("SELECT count(*) FROM statistic WHERE step >= ? AND step < ?", gap) for gap in _gaps(connection)),
    ]
    return sum(int(row[0]) for query, values in queries for row in connection.rows(query, values))


def missing_tables(connection: Connection) -> list[str]:
    """The tables without a row although others hold what a writer puts in beside theirs: statistics, measures or steps."""
    queries = {
        "statistics": "SELECT EXISTS (SELECT 1 FROM series) AND NOT EXISTS (SELECT 1 FROM statistic) "
        "AND (EXISTS (SELECT 1 FROM step) OR EXISTS (SELECT 1 FROM measure))",
        "measures": "SELECT EXISTS (SELECT 1 FROM quantity) AND NOT EXISTS (SELECT 1 FROM measure)",
        "steps": "SELECT EXISTS (SELECT 1 FROM statistic) AND NOT EXISTS (SELECT 1 FROM step)",
    }
    return [name for name, query in queries.items() if any(row[0] for row in connection.rows(query))]


def _gaps(connection: Connection) -> list[tuple[int, int]]:
    """Steps that no level of resolution counts for, from and up to; none in what a writer leaves."""
    levels = sorted(connection.rows("SELECT since, until FROM resolution WHERE since < until"))
    gaps, reached = [], -FAR
    for since, until in [*levels, (FAR, FAR)]:
        if since > reached:
            gaps.append((reached, since))
        reached = max(reached, until)
    return gaps


def first_broken_loss(connection: Connection) -> int | None:
    """The first step that was made with a loss that is NaN or infinite; NULL is a loss that is not known."""
    # A text is larger than every number to SQLite, also the text that stands for NaN.
    rows = connection.rows("SELECT min(step) FROM step WHERE skipped = 0 AND (loss >= 9e999 OR loss <= -9e999)")
    return rows[0][0] if rows and isinstance(rows[0][0], int) else None
