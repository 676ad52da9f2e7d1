"""What a rule is: metadata, thresholds as typed fields, and one pure check."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, TypeVar

from gnnstab.records import Finding, Signal, Signals

R = TypeVar("R", bound="Rule")


def threshold(default: float, *, unit: str, source: str) -> Any:
    """Declare a threshold field of a rule, with its unit and where the number comes from."""
    return dataclasses.field(default=default, metadata={"unit": unit, "source": source})


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Rule(ABC):
    """One pattern of instability.

    A subclass, declared with `rule`, is a frozen dataclass whose fields are its thresholds (see `threshold`), so that a
    configuration can replace them. Its docstring is the rule's page: *Why it matters / What to do / How it is measured /
    When it is silent / Sources*.
    """

    code: ClassVar[str]
    """``GS`` and three digits, never used again for anything else."""

    name: ClassVar[str]
    """The pattern, in kebab case; never the cure."""

    cause: ClassVar[str]
    """The cause that a finding of this rule points to; ``""`` for observations about the tool."""

    severity: ClassVar[str]
    """The highest severity that the rule raises."""

    confidence: ClassVar[str]

    @abstractmethod
    def check(self, signals: Signals) -> Iterator[Finding]:
        """Yield findings.

        Raises `NotEvaluable` when a needed signal was not observed and `NotApplicable` when the rule does not concern
        the model; the engine turns both into a status with the reason.
        """

    def finding(
        self,
        message: str,
        *,
        limit: float,
        severity: str | None = None,
        signal: Signal | None = None,
        name: str = "",
        value: float = math.nan,
        layer: str | None = None,
        step: int | None = None,
        unit: str = "",
        confidence: str | None = None,
        cause: str | None = None,
    ) -> Finding:
        """Build a finding from the signal that crossed ``limit``, or from ``name``, ``value``, ``layer`` and ``unit``.

        ``severity``, ``confidence`` and ``cause`` replace the rule's own.
        """
        return Finding(
            code=self.code,
            name=self.name,
            cause=self.cause if cause is None else cause,
            severity=severity or self.severity,
            confidence=confidence or self.confidence,
            layer=signal.layer if signal else layer,
            head=signal.head if signal else None,
            step=signal.step if signal else step,
            signal=signal.name if signal else name,
            value=signal.value if signal else value,
            threshold=limit,
            unit=signal.unit if signal else unit,
            message=message,
        )


def first_of_each_layer(found: Iterable[Signal]) -> list[Signal]:
    """One signal per layer: a baseline knows findings by their layers, and one finding for several would hide a new one."""
    first: dict[str | None, Signal] = {}
    for signal in found:
        first.setdefault(signal.layer, signal)
    return list(first.values())


def rule(code: str, name: str, *, cause: str, severity: str, confidence: str) -> Callable[[type[R]], type[R]]:
    """Declare a subclass of `Rule` with its metadata, as the fields of that name say."""

    def declared(cls: type[R]) -> type[R]:
        cls.code, cls.name, cls.cause, cls.severity, cls.confidence = code, name, cause, severity, confidence
        # Nobody compares or prints rules, and making the methods for it takes a good part of their import.
        return dataclasses.dataclass(frozen=True, eq=False, repr=False)(cls)

    return declared
