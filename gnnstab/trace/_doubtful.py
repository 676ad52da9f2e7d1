"""Rows that the tables hold and that no reading of a whole trace would give, and losses that are not finite."""

from __future__ import annotations

from gnnstab.records import PARAMETER_SITES, SIGNALS, SITES
from gnnstab.trace._connection import Connection
from gnnstab.trace._schema import FAR

_MODES = "('train', 'train-nograd', 'eval', 'eval-grad', '')"

_LAYERS = "layer IN (SELECT name FROM layer)"
_SERIES = (
    f"SELECT id FROM series WHERE mode IN {_MODES} AND (site IN {PARAMETER_SITES} OR (site IN {SITES} AND {_LAYERS}))"
)
# By the first word, since single names have changed; "/" stands behind "." in the order of characters.
_NAMES = " OR ".join(
    f"(name >= '{word}' AND name < '{word}/')" for word in sorted({n.partition(".")[0] for n in SIGNALS})
)
_QUANTITIES = f"SELECT id FROM quantity WHERE mode IN {_MODES} AND (layer = '' OR {_LAYERS}) AND ({_NAMES})"
# +Inf and -Inf, of a reduction over no entry, are no turned extremes; a text is no number.
_TURNED = "minimum < 9e999 AND maximum > -9e999 AND minimum > maximum"
_IMPOSSIBLE = f"span < 1 OR count < 0 OR non_finite < -1 OR rms < 0 OR ({_TURNED})"

_BROKEN_LOSS = "loss IS NOT NULL AND (loss >= 9e999 OR loss <= -9e999)"
"""A text is larger than every number to SQLite, also the text that stands for NaN; NULL is a loss that is not known."""

_BROKEN_NORM = _BROKEN_LOSS.replace("loss", "grad_norm")

_FEWEST = 3
"""Steps that were all skipped, from which on a run counts as one that never trained."""


def doubtful_rows(connection: Connection) -> int:
    """Rows that no writer makes: of a series or quantity that is not listed, or whose layer, site, mode or name there is none
    of; of fewer than no steps or entries, or with turned extremes; between the levels of resolution; of a step that is
    neither skipped nor made."""
    queries: list[tuple[str, tuple[int, ...]]] = [
        (f"SELECT count(*) FROM statistic WHERE series NOT IN ({_SERIES}) OR {_IMPOSSIBLE}", ()),
        (f"SELECT count(*) FROM measure WHERE quantity NOT IN ({_QUANTITIES})", ()),
        ("SELECT count(*) FROM step WHERE skipped NOT IN (0, 1)", ()),
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
    """The first step that was made with a loss that is NaN or infinite, or the first of a run that skipped all its steps so."""
    made = f"SELECT min(step) FROM step WHERE skipped = 0 AND {_BROKEN_LOSS}"
    all_skipped = f"count(*) >= {_FEWEST} AND min(skipped = 1 AND {_BROKEN_LOSS}) = 1"
    never = f"SELECT CASE WHEN {all_skipped} THEN min(step) END FROM step"
    found = [row[0] for query in (made, never) for row in connection.rows(query) if isinstance(row[0], int)]
    return found[0] if found else None


def broken_at_the_end(connection: Connection) -> int | None:
    """The last step, where it was made with a gradient of NaN or Inf: no forward comes after it that shows what became of the weights."""
    query = f"SELECT step FROM step WHERE step = (SELECT max(step) FROM step) AND skipped = 0 AND {_BROKEN_NORM}"
    return next((int(row[0]) for row in connection.rows(query) if isinstance(row[0], int)), None)
