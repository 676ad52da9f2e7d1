"""The thresholds that a signal is held against, as numbers."""

from __future__ import annotations

from collections.abc import Iterator

from gnnstab.records.vocabulary import SIGNALS, RuleLimit
from gnnstab.rules._table import RULES
from gnnstab.rules.engine import Thresholds, configure

_RULES = {rule.code: rule for rule in RULES}


def value_of(limit: RuleLimit, thresholds: Thresholds | None = None) -> float:
    """The number behind a limit; ``thresholds`` replace the rules' own, as for `gnnstab.diagnose`."""
    rule = configure(_RULES[limit.rule], (thresholds or {}).get(limit.rule, {}))
    return float(getattr(rule, limit.field))


def limits_of(signal: str) -> Iterator[tuple[float, str]]:
    """(number, severity) of every limit of a signal whose crossing alone is a finding, the mildest first."""
    for limit in SIGNALS[signal].limits:
        if limit.severity:
            yield value_of(limit), limit.severity
