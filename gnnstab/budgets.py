"""Limits in words of the field: ``max one-hot share 0.25 at in-degree <= 20``, ``fp16 headroom >= 10x``.

::

    budget    := limit [condition]
    limit     := ("max" | "min") quantity number | quantity ("<" | "<=" | ">" | ">=") number
    number    := 0.25 | 25 % | 10x
    condition := "at in-degree" ("<=" | ">=") number

A quantity is one of `QUANTITIES` or the name of a signal. ``≤``, ``≥`` and ``×`` are understood as well.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gnnstab.errors import UsageError
from gnnstab.records import SIGNALS, Diagnosis, Signal
from gnnstab.records.vocabulary import DEGREE_MAX

QUANTITIES: Mapping[str, str] = {words: name for name, kind in SIGNALS.items() for words in kind.spoken}
"""Words → signal."""

_NUMBER = r"(?P<{}>[-+]?[0-9]*\.?[0-9]+(?:e[-+]?[0-9]+)?)\s*(?P<{}>%|x)?"
_CONDITION = r"(?:\s+at\s+in-?degree\s*(?P<bound>[<>]=)\s*" + _NUMBER.format("degree", "_unit") + ")?"
_SPOKEN = re.compile(
    r"(?P<word>max|min)(?:imum)?\s+(?P<quantity>.+?)\s+" + _NUMBER.format("value", "unit") + _CONDITION
)
_WRITTEN = re.compile(r"(?P<quantity>.+?)\s*(?P<sign>[<>]=?)\s*" + _NUMBER.format("value", "unit") + _CONDITION)


@dataclass(frozen=True, slots=True)
class Violation:
    """A number beyond its budget, or a budget that could not be checked."""

    budget: Budget
    reason: str
    """What, where, and by how much; or why it could not be checked."""

    signal: Signal | None = None
    """The number; None when the budget could not be checked."""

    def __str__(self) -> str:
        return f"{self.budget.text}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Budget:
    """One limit on one signal, for every layer and head that has it."""

    text: str
    """As it was written."""

    signal: str
    upper: bool
    """True for a limit from above."""

    strict: bool
    """True for ``<`` and ``>``: the limit itself is beyond."""

    limit: float
    max_degree: float = math.inf
    """Holds for layers whose largest in-degree is at most this."""

    min_degree: float = 0.0
    """Holds for layers whose largest in-degree is at least this."""

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read one budget; raises `UsageError` that says which part is not understood."""
        plain = " ".join(text.lower().replace("≤", "<=").replace("≥", ">=").replace("×", "x").split())
        match = _SPOKEN.fullmatch(plain) or _WRITTEN.fullmatch(plain)
        if match is None:
            raise UsageError(
                f"budget {text!r} is not understood; write for example 'max one-hot share 0.25 at in-degree <= 20' "
                "or 'fp16 headroom >= 10x'"
            )
        parts = match.groupdict()
        upper = parts["word"] == "max" if parts.get("word") else parts["sign"].startswith("<")
        bounds = {"<=": "max_degree", ">=": "min_degree"}
        degree = {bounds[parts["bound"]]: float(parts["degree"])} if parts["bound"] else {}
        return cls(
            text=text,
            signal=_signal(parts["quantity"].strip(), text),
            upper=upper,
            strict=parts.get("sign") in ("<", ">"),
            limit=float(parts["value"]) / (100 if parts["unit"] == "%" else 1),
            **degree,
        )

    def check(self, diagnosis: Diagnosis) -> list[Violation]:
        """Every number beyond this budget; a budget that no number speaks to is a violation of its own."""
        found = [s for s in diagnosis.signals if s.name == self.signal]
        if not found:
            return [Violation(self, f"could not be checked: {self.signal} was not measured")]
        degrees = {s.layer: s.value for s in diagnosis.signals if s.name == DEGREE_MAX}
        covered = [s for s in found if self._covers(s, degrees)]
        if not covered:
            seen = ", ".join(sorted({f"{value:g}" for value in degrees.values()})) or "unknown"
            return [Violation(self, f"could not be checked: the largest in-degree of what was measured is {seen}")]
        return [Violation(self, self._reason(s), s) for s in covered if self._beyond(s.value)]

    def _covers(self, signal: Signal, degrees: Mapping[str | None, float]) -> bool:
        """True when the number was measured at an in-degree that the budget speaks of."""
        if self.max_degree == math.inf and self.min_degree == 0:
            return True
        degree = signal.detail.get("in_degree", degrees.get(signal.layer, degrees.get(None, math.nan)))
        return self.min_degree <= float(degree) <= self.max_degree

    def _beyond(self, value: float) -> bool:
        """A NaN lies beyond every budget."""
        if self.strict:
            return not (value < self.limit if self.upper else value > self.limit)
        return not (value <= self.limit if self.upper else value >= self.limit)

    def _reason(self, signal: Signal) -> str:
        place = signal.layer or "the model"
        head = "" if signal.head is None else f", head {signal.head}"
        step = "" if signal.step is None else f", step {signal.step}"
        word = "above" if self.upper else "below"
        unit = f" {signal.unit}" if signal.unit else ""
        how = f"{word} {self.limit:g}" if math.isfinite(signal.value) else f"not a finite number (limit {self.limit:g})"
        return f"{place}{head}{step}: {self.signal} is {signal.value:.4g}{unit}, {how}"


def check(budgets: Iterable[str | Budget], diagnosis: Diagnosis) -> list[Violation]:
    """The violations of all budgets, in their order; raises `UsageError` for one that is not understood."""
    parsed = [Budget.parse(b) if isinstance(b, str) else b for b in budgets]
    return [violation for budget in parsed for violation in budget.check(diagnosis)]


def _signal(quantity: str, text: str) -> str:
    if quantity in QUANTITIES:
        return QUANTITIES[quantity]
    if quantity in SIGNALS:
        return quantity
    known = ", ".join(QUANTITIES)
    raise UsageError(f"budget {text!r}: unknown quantity {quantity!r}; known are {known}, and every signal by its name")
