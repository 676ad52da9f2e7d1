"""Findings, causes, and the diagnosis that every report is made from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gnnstab.characters import as_json
from gnnstab.errors import NothingEvaluable, UnstableError, UsageError
from gnnstab.records._layers import LayerFacts
from gnnstab.records._rows import Blind, Event
from gnnstab.records.json_numbers import plain
from gnnstab.records.signals import Series, Signal

SCHEMA_VERSION = "1"

SEVERITIES = ("info", "warning", "error")
"""In ascending order."""

FIVE_CAUSES = ("no-dropout", "beta-disabled", "no-residual", "attention-explosion", "unsuitable-init")
"""Always reported, in this order."""

FURTHER_CAUSES = (
    *("sum-aggregation", "feature-scale", "learning-rate", "adam-epsilon", "precision", "dead-units", "isolated-nodes"),
    *("normalization-misuse", "oversmoothing", "active-clamp", "non-finite-data", "uninitialized-parameter"),
    *("never-updated-parameter", "saturated-gate", "undefined-operation", "masking", "indistinguishable-nodes"),
    "stale-gradients",
)
"""Reported, in this order, when not absent."""

CAUSE_STATUSES = ("root-cause", "contributing", "present", "absent", "not-evaluable")
HOW_KNOWN = ("observed", "undone", "tried", "inferred")
"""Seen directly; undone on a copy and the symptom measured again; shown by steps on a copy, with nothing undone; or the mechanism fits and nothing could be tried."""

NOT_UNDONE = ("tried", "inferred")
"""How a cause is known that was neither seen nor undone."""

RULE_STATUSES = ("fired", "passed", "not-applicable", "not-evaluable", "suppressed")
VERDICTS = ("confirmed", "no-effect", "made-worse", "inconclusive", "not-tested")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, with the number that shows it."""

    code: str
    """Rule code, e.g. ``GS301``."""

    name: str
    """Rule name, e.g. ``attention-explosion``."""

    cause: str
    """One of `FIVE_CAUSES` or `FURTHER_CAUSES`, or ``""`` where nothing measured shows one and for an observation about the tool itself
    (GS9xx)."""

    severity: str
    confidence: str
    """``high`` (measured, mechanism known), ``medium`` (measured once, or literature), ``low`` (heuristic)."""

    layer: str | None
    head: int | None
    step: int | None
    signal: str
    """Name of the signal that crossed its threshold."""

    value: float
    threshold: float
    unit: str
    message: str
    """What, where, how sure, what to do; one to three sentences with the user's own names and numbers."""

    explained_by: str | None = None
    """Code of the finding that this one follows from."""

    @property
    def fingerprint(self) -> str:
        """Stable identity: code, layer, head and signal, not the number, so a small move keeps it."""
        text = "\x1f".join([self.code, self.layer or "", "" if self.head is None else str(self.head), self.signal])
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Suppressed:
    """A finding that was taken out of the verdict, and why."""

    finding: Finding
    reason: str
    """The user's reason, or that the baseline knows the finding."""

    origin: str = "configuration"
    """``configuration`` or ``baseline``."""


@dataclass(frozen=True, slots=True)
class FixAdvice:
    """One fix for one cause: the change, and what is known about whether it works here."""

    fix: str
    """Name in `gnnstab.fixes.FIXES`."""

    change: str
    """The exact change for this model: code, ready to paste."""

    verdict: str = "not-tested"
    """One of `VERDICTS`."""

    before: float | None = None
    after: float | None = None
    signal: str = ""
    """The signal that ``before`` and ``after`` are values of."""

    note: str = ""
    """How to test it, which arms were compared, or why it would not help."""


@dataclass(frozen=True, slots=True)
class Cause:
    """One possible root cause and its status on this target."""

    cause: str
    status: str
    """One of `CAUSE_STATUSES`."""

    reason: str
    codes: tuple[str, ...] = ()
    fixes: tuple[FixAdvice, ...] = ()
    how: str = ""
    """How it is known, one of `HOW_KNOWN`; empty for a cause without a symptom that it could have brought about."""

    share: float | None = None
    """Share of the way back to the healthy band when it is undone on a copy; None where it was not undone."""


@dataclass(frozen=True, slots=True)
class RuleStatus:
    """How one rule ended."""

    code: str
    status: str
    """One of `RULE_STATUSES`."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class Advice:
    """Well-known advice that would not help, or would harm, on this target."""

    code: str
    """``W1`` … ``W12``."""

    advice: str
    """The advice, in a few words."""

    reason: str
    """Why not here, with the measured number."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """What was seen and what was not."""

    layers_expected: int
    layers_observed: int
    blind: tuple[Blind, ...] = ()
    assumptions: tuple[str, ...] = ()
    """``"heads=3: given"``, ``"activation=relu: assumed"``, …"""


@dataclass(frozen=True, slots=True)
class Target:
    """What was diagnosed."""

    kind: str
    """``checkpoint``, ``trace`` or ``model``."""

    path: str
    """As the user gave it; for a model its class name."""

    notes: tuple[str, ...] = ()
    """What was unwrapped, skipped or joined on the way in."""


@dataclass(frozen=True)
class Diagnosis:
    """The result of `gnnstab.diagnose` and the only input of every report."""

    target: Target
    coverage: Coverage
    causes: tuple[Cause, ...]
    findings: tuple[Finding, ...]
    rules: tuple[RuleStatus, ...]
    advice: tuple[Advice, ...] = ()
    layers: tuple[LayerFacts, ...] = ()
    """Evidence: the layers as they were recovered."""

    signals: tuple[Signal, ...] = ()
    """Evidence: the numbers that the rules saw."""

    series: tuple[Series, ...] = ()
    """Evidence: numbers over steps, when the target is a run."""

    events: tuple[Event, ...] = ()
    """Evidence: non-finite values and other events."""

    context: Mapping[str, Any] = field(default_factory=dict)

    suppressed: tuple[Suppressed, ...] = ()
    """Findings that a configuration or a baseline took out of `findings`; they fail nothing."""

    def at_least(self, severity: str) -> tuple[Finding, ...]:
        """Findings of this severity or worse."""
        if severity not in SEVERITIES:
            raise UsageError(f"unknown severity {severity!r}; choose from {', '.join(SEVERITIES)}")
        floor = SEVERITIES.index(severity)
        return tuple(f for f in self.findings if SEVERITIES.index(f.severity) >= floor)

    def exit_code(self, fail_on: str = "warning") -> int:
        """0 nothing at or above ``fail_on``; 1 findings; 3 nothing evaluable."""
        if self.at_least(fail_on):
            return 1
        return 3 if self.nothing_evaluable else 0

    @property
    def nothing_evaluable(self) -> bool:
        """True when no layer was observed or no rule came to a verdict."""
        verdicts = [r for r in self.rules if r.status in ("fired", "passed") and not r.code.startswith("GS9")]
        return self.coverage.layers_observed == 0 or not verdicts

    def raise_for(self, severity: str = "warning") -> Diagnosis:
        """Raise `UnstableError` with the worst finding when there is one of this severity or worse; else return self.

        Raises:
            UnstableError: A finding at or above ``severity``.
            NothingEvaluable: Nothing was judged, so that nothing can be called healthy.
        """
        failing = self.at_least(severity)
        if failing:
            raise UnstableError(max(failing, key=lambda f: (SEVERITIES.index(f.severity), f.explained_by is None)))
        if self.nothing_evaluable:
            raise NothingEvaluable("nothing could be judged; print(diagnosis) says what is missing")
        return self

    def save(self, path: str | os.PathLike[str], format: str | None = None, **options: Any) -> Path:
        """Write the report to a file and return its path; the ending says which (``.html .json .md .txt .sarif .xml``).

        ``format`` names one where the ending does not; ``options`` are those of the format. Raises `UsageError`.
        """
        from gnnstab import presented

        saved: Path = presented(self, "file", path, format, **options)
        return saved

    def suppress(self, withheld: Sequence[Suppressed]) -> Diagnosis:
        """A copy without these findings; a rule that has none left becomes ``suppressed``."""
        taken = {id(item.finding) for item in withheld}
        kept = tuple(f for f in self.findings if id(f) not in taken)
        firing = {f.code for f in kept}
        reasons = {item.finding.code: item.reason for item in reversed(withheld)}
        rules = tuple(
            replace(r, status="suppressed", reason=reasons[r.code])
            if r.code in reasons and r.code not in firing and r.status == "fired"
            else r
            for r in self.rules
        )
        return replace(self, findings=kept, rules=rules, suppressed=(*self.suppressed, *withheld))

    def root_causes(self) -> tuple[Cause, ...]:
        """The causes with status ``root-cause``: first what made a value NaN or infinite, last what only fits the numbers."""
        roots = (c for c in self.causes if c.status == "root-cause")
        return tuple(sorted(roots, key=lambda c: ("GS502" not in c.codes, c.how in NOT_UNDONE)))

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, schema 1 (docs/schema/diagnosis-1.json)."""
        from gnnstab import __version__

        return {
            "schema_version": SCHEMA_VERSION,
            "tool": {"name": "gnnstab", "version": __version__},
            "target": plain(self.target),
            "coverage": plain(self.coverage),
            "causes": [plain(c) for c in self.causes],
            "findings": [{**plain(f), "fingerprint": f.fingerprint} for f in self.findings],
            "rules": [plain(r) for r in self.rules],
            "advice": [plain(a) for a in self.advice],
            "layers": [plain(layer.flat()) for layer in self.layers],
            "signals": [{**plain(s), "unit": s.unit} for s in self.signals],
            "series": [plain(s) for s in self.series],
            "events": [plain(e) for e in self.events],
            "context": plain(dict(self.context)),
            "suppressed": [
                {**plain(s), "finding": {**plain(s.finding), "fingerprint": s.finding.fingerprint}}
                for s in self.suppressed
            ],
        }

    def to_json(self, indent: int | None = 2) -> str:
        """`to_dict` as text; numbers have seven significant digits, NaN and Inf are the strings "nan", "inf", "-inf"."""
        return as_json(self.to_dict(), indent)

    def _repr_html_(self) -> str:
        """The page in a frame of its own, so that its styles cannot reach the notebook."""
        from gnnstab import presented

        page: str = presented(self, "page")
        return page

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """The text, for IPython and for what a notebook keeps beside the page."""
        printer.text(str(self).rstrip())

    def __str__(self) -> str:
        from gnnstab import presented

        text: str = presented(self, "text")
        return text
