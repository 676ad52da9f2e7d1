"""The comparison of two diagnoses, signal by signal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from gnnstab.errors import NothingEvaluable
from gnnstab.records import SIGNALS, Diagnosis, Finding, Target
from gnnstab.records.json_numbers import plain
from gnnstab.records.vocabulary import WEIGHT_NON_FINITE, WEIGHT_RMS, SignalKind, compared
from gnnstab.rules.limits import value_of

EXTREME = 2.0
"""Growth from which on a worst value counts at least: one step of a run scatters more than the median of many."""


class Key(NamedTuple):
    """What identifies a number in both states."""

    signal: str
    layer: str
    """``""`` for a number of the whole model; the parameter's name for its size."""

    head: int
    """-1 for the aggregate over heads."""

    source: str
    extreme: bool
    """True for the worst value of a run, False for the one that stands for its end."""


@dataclass(frozen=True, slots=True)
class Change:
    """One number in both states."""

    signal: str
    layer: str | None
    head: int | None
    before: float
    """0 where nothing was measured before a value that became NaN or Inf."""

    after: float
    growth: float
    """Factor towards danger: 2 is twice as bad; inf when the value was 0 or became non-finite, also in a run on its way."""

    rule: str | None = None
    """Rule whose limit lies in the dangerous direction."""

    limit: float | None = None
    """That limit."""

    extreme: bool = False
    """True when ``before`` and ``after`` are the worst values of two runs instead of those at their ends."""

    @property
    def approach(self) -> float | None:
        """Share of the way from ``before`` to the limit: 1 and more when it was crossed; None without a limit."""
        if self.limit is None or not math.isfinite(self.before):
            return None
        way = self.limit - self.before
        beyond = (self.after - self.limit) * (1 if SIGNALS[self.signal].rises else -1)
        if not math.isfinite(self.after) or way == 0:
            return 1.0 if beyond >= 0 or not math.isfinite(self.after) else 0.0
        crossed_already = (way < 0) == SIGNALS[self.signal].rises
        return 1.0 if crossed_already and beyond >= 0 else max(0.0, (self.after - self.before) / way)


@dataclass(frozen=True)
class Comparison:
    """What changed from one state to another."""

    before: Target
    after: Target
    changes: tuple[Change, ...]
    """Every number that both states have, the strongest growth first."""

    new: tuple[Finding, ...]
    """Findings of the later state that the earlier one does not have."""

    gone: tuple[Finding, ...]
    """Findings of the earlier state that the later one does not have."""

    only_before: tuple[str, ...] = ()
    """Layers that only the earlier state has."""

    only_after: tuple[str, ...] = ()
    """Layers that only the later state has."""

    def grown(self, factor: float) -> tuple[Change, ...]:
        """Changes by this factor or more towards danger, those below the floor of their signal left out."""
        return tuple(
            c for c in self.changes if c.growth >= (max(factor, EXTREME) if c.extreme else factor) and _counts(c)
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, non-finite numbers as strings."""
        document: dict[str, Any] = plain(self)
        for change, record in zip(self.changes, document["changes"], strict=True):
            record["approach"] = plain(change.approach)
        return document


def compare(a: Diagnosis, b: Diagnosis, *, thresholds: Mapping[str, Mapping[str, float]] | None = None) -> Comparison:
    """Compare an earlier state with a later one.

    Args:
        a: The earlier diagnosis.
        b: The later diagnosis.
        thresholds: Thresholds that replace those of the rules, as for `gnnstab.diagnose`.

    Raises:
        NothingEvaluable: The two have no layer with a number in common.
    """
    left, right = _latest(a), _latest(b)
    layers_a, layers_b = [x.name for x in a.layers], [x.name for x in b.layers]
    shared = {key.layer for key in left.keys() & right.keys()} | (set(layers_a) & set(layers_b))
    known, later = {f.fingerprint for f in a.findings}, {f.fingerprint for f in b.findings}
    new = tuple(f for f in b.findings if f.fingerprint not in known)
    for key, value in _became_non_finite(right, new).items():
        # Of such weights and values nothing else is measured that could be compared.
        right[key] = value
        left.setdefault(key, 0.0)
    common = left.keys() & right.keys()
    # Weights that are no longer NaN or Inf have nothing to be compared with, and are no lack.
    healed = any(f.signal == WEIGHT_NON_FINITE for f in a.findings)
    if not any(shared) or not (common or healed):
        raise NothingEvaluable(
            f"{a.target.path} and {b.target.path} have no layer and signal in common; compare two states of one network, "
            "observed in the same way"
        )
    limits = _limits(thresholds or {})
    changes = [_change(key, left[key], right[key], limits) for key in common]
    return Comparison(
        before=a.target,
        after=b.target,
        changes=tuple(sorted(changes, key=_rank)),
        new=new,
        gone=tuple(f for f in a.findings if f.fingerprint not in later),
        only_before=tuple(name for name in layers_a if name not in layers_b),
        only_after=tuple(name for name in layers_b if name not in layers_a),
    )


def _latest(diagnosis: Diagnosis) -> dict[Key, float]:
    """The last value of every signal that is compared, and of a run its worst."""
    watched = compared()
    found: dict[Key, tuple[int, float]] = {}
    for s in diagnosis.signals:
        if s.name not in watched:
            continue
        step, worst = -1 if s.step is None else s.step, s.detail.get("worst")
        for extreme, value in ((False, s.value), (True, worst)):
            place = str(s.detail.get("parameter") or "") if s.name == WEIGHT_RMS else ""
            key = Key(s.name, place or s.layer or "", -1 if s.head is None else s.head, s.source, extreme)
            if not isinstance(value, (int, float)):
                continue
            if place.endswith("bias") and not watched[s.name].counts(value):
                continue  # Biases begin at 0, from where all that they learn is growth without end.
            if (
                s.name == WEIGHT_NON_FINITE
            ):  # One signal for every tensor; layers that have no such entry are not told of.
                if value > 0:
                    found[key] = (step, float(value) + found.get(key, (step, 0.0))[1])
            elif key not in found or step >= found[key][0]:
                found[key] = (step, float(value))
    return {key: value for key, (_, value) in found.items()}


def _became_non_finite(right: Mapping[Key, float], new: Sequence[Finding]) -> dict[Key, float]:
    """What is NaN or Inf in the later state: entries of weights, and values of a run that a new finding tells of."""
    weights = {key: value for key, value in right.items() if key.signal == WEIGHT_NON_FINITE}
    told = {
        Key(f.signal, f.layer or "", -1 if f.head is None else f.head, "event", True): f.value
        for f in new
        if f.signal in SIGNALS and not math.isfinite(f.value)
    }
    return {**weights, **told}


def _limits(thresholds: Mapping[str, Mapping[str, float]]) -> dict[str, tuple[str, float]]:
    """Signal → rule and limit, for the compared signals that have one."""
    first = {name: kind.limits[0] for name, kind in compared().items() if kind.limits}
    return {name: (limit.rule, value_of(limit, thresholds)) for name, limit in first.items()}


def _change(key: Key, before: float, after: float, limits: Mapping[str, tuple[str, float]]) -> Change:
    rule, limit = limits.get(key.signal, (None, None))
    growth = _growth(SIGNALS[key.signal], before, after)
    head = None if key.head < 0 else key.head
    return Change(key.signal, key.layer or None, head, before, after, growth, rule, limit, key.extreme)


def _growth(kind: SignalKind, before: float, after: float) -> float:
    if not math.isfinite(after):
        return math.inf if math.isfinite(before) else 1.0
    return kind.growth(before, after) if math.isfinite(before) else 0.0


def _counts(change: Change) -> bool:
    return not math.isfinite(change.after) or SIGNALS[change.signal].counts(change.after)


def _rank(change: Change) -> tuple[Any, ...]:
    """What matters first: growth that counts, the strongest before the weaker."""
    return (
        not _counts(change),
        -change.growth,
        change.signal,
        change.layer or "",
        change.extreme,
        -1 if change.head is None else change.head,
    )
