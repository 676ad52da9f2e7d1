"""Suppressions: findings that a team has looked at and accepted, with a reason and perhaps until a day."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from fnmatch import translate
from functools import lru_cache

from gnnstab.records import Diagnosis, Finding, Suppressed

MOST = 2000
"""Suppressions, and layers with thresholds of their own, in one configuration; each finding is compared with all of them."""

MOST_TOLD = 20
"""Suppressions that are told of one by one when they have expired or match nothing."""


@dataclass(frozen=True, slots=True)
class Suppression:
    """One accepted kind of finding."""

    code: str
    """Rule code or a prefix of it."""

    reason: str
    """Why it is accepted; mandatory."""

    layer: str = "*"
    """Glob over layer names; a finding of the whole model has the name ``""``."""

    expires: date | None = None
    """Last day on which it holds."""

    origin: str = ""
    """File that it stands in."""

    def covers(self, finding: Finding) -> bool:
        """True when the finding is one of those that this suppression accepts."""
        return finding.code.startswith(self.code) and bool(_glob(self.layer)(finding.layer or ""))

    def expired(self, today: date) -> bool:
        """True from the day after `expires` on."""
        return self.expires is not None and today > self.expires

    def describe(self) -> str:
        """``layer decoder.*, until 2026-12-31: reason``."""
        until = f", until {self.expires.isoformat()}" if self.expires else ""
        return f"layer {self.layer}{until}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Diagnoses after suppression, and what is wrong with the suppressions."""

    diagnoses: tuple[Diagnosis, ...]
    complaints: tuple[str, ...]
    """One line per suppression that has expired or matched nothing; beyond `MOST_TOLD` a count."""


def accept(diagnoses: Iterable[Diagnosis], suppressions: Sequence[Suppression], today: date) -> Acceptance:
    """Take accepted findings out of the diagnoses; an expired suppression is reported and does nothing."""
    valid = [s for s in suppressions if not s.expired(today)]
    used: set[int] = set()
    accepted = []
    for diagnosis in diagnoses:
        withheld = []
        for finding in diagnosis.findings:
            cover = next((s for s in valid if s.covers(finding)), None)
            if cover is not None:
                used.add(id(cover))
                withheld.append(Suppressed(finding, cover.reason, "configuration"))
        accepted.append(diagnosis.suppress(withheld) if withheld else diagnosis)
    complaints = list(_complaints(suppressions, used, today))
    if more := len(complaints[MOST_TOLD:]):
        complaints[MOST_TOLD:] = [f"{more} more suppressions have expired or matched nothing; remove them"]
    return Acceptance(tuple(accepted), tuple(complaints))


@lru_cache(MOST)
def _glob(glob: str) -> Callable[[str], object]:
    """Matches a layer's name; `fnmatch` itself keeps no more than 256 globs in mind and translates the others each time."""
    return re.compile(translate(glob)).match


def _complaints(suppressions: Sequence[Suppression], used: set[int], today: date) -> Iterable[str]:
    for s in suppressions:
        place = f"suppression of {s.code} at layer {s.layer} in {s.origin}"
        if s.expired(today):
            yield f"{place} expired on {s.expires}; remove it or renew it"
        elif id(s) not in used:
            yield f"{place} matched nothing; remove it"
