"""For tests of your own: assert that a model is numerically stable on a batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gnnstab import budgets as limits
from gnnstab.baseline import read
from gnnstab.characters import counted
from gnnstab.records import Diagnosis, Finding
from gnnstab.report import escape, summary
from gnnstab.report.faces import spoken
from gnnstab.report.numbers import measured
from gnnstab.rules.queries import names

if TYPE_CHECKING:
    import os

    from torch import nn

__all__ = ["assert_stable", "require"]

MOST = 5
"""Rules whose worst finding is named in the message of a failure, and budgets."""

MOST_CODE = 4
"""Lines of a change that such a message shows."""


def assert_stable(
    model: nn.Module,
    batch: Any,
    loss: Callable[..., Any] | None = None,
    *,
    fail_on: str = "warning",
    select: str | Sequence[str] | None = None,
    ignore: str | Sequence[str] | None = None,
    budgets: Sequence[str | limits.Budget] = (),
    precision: str = "fp32",
    thresholds: Mapping[str, Mapping[str, float]] | None = None,
    baseline: str | os.PathLike[str] | None = None,
) -> Diagnosis:
    """Run the model forward and backward on the batch and raise `AssertionError` when it is not stable.

    Args:
        model: The model; it is copied, not changed.
        batch: A ``Data``/``HeteroData``, a tuple or dict of arguments, an iterable of those, or the path of a file.
        loss: ``callable(output, batch) -> scalar``; a stated synthetic objective when omitted.
        fail_on: Lowest severity that fails.
        select: Code prefixes of the rules to run, e.g. ``"GS3"`` or ``["GS3", "GS5"]``.
        ignore: Code prefixes to leave out.
        budgets: Limits in words, see `gnnstab.budgets`.
        precision: ``fp32``, ``fp16`` or ``bf16``.
        thresholds: Thresholds that replace those of the rules.
        baseline: File of known findings; they do not fail.

    Returns:
        The diagnosis, for further assertions.

    Raises:
        AssertionError: A finding, a broken budget, or nothing that could be judged; the message names layer, head, number.
    """
    from pathlib import Path

    from gnnstab.diagnosis import diagnose

    __tracebackhide__ = True  # pytest shows the test's own line
    diagnosis = diagnose(
        model,
        batch=batch,
        loss=loss,
        precision=precision,
        select=codes(select),
        ignore=codes(ignore),
        thresholds=thresholds,
    )
    if baseline is not None:
        diagnosis = read(Path(baseline)).apply(diagnosis)
    require(diagnosis, fail_on=fail_on, budgets=budgets)
    return diagnosis


def require(diagnosis: Diagnosis, *, fail_on: str = "warning", budgets: Sequence[str | limits.Budget] = ()) -> None:
    """Raise `AssertionError` unless the diagnosis passes; arguments as for `assert_stable`."""
    __tracebackhide__ = True
    broken = limits.check(budgets, diagnosis)
    text = failure(diagnosis, fail_on, broken)
    if text:
        raise AssertionError(text)


def failure(diagnosis: Diagnosis, fail_on: str, broken: Sequence[limits.Violation] = ()) -> str:
    """Why a diagnosis does not pass, or ``""``."""
    diagnosis = spoken(diagnosis)
    word, rest = summary.verdict(diagnosis)
    lines = []
    # A selection of rules that all had nothing to judge must not look like health.
    if diagnosis.nothing_evaluable and not broken:
        lines.append("nothing could be judged; what is missing:")
        lines += [
            f"  {rule.code}: {escape.sentence(rule.reason)}"
            for rule in diagnosis.rules
            if rule.status == "not-evaluable"
        ][:MOST]
    failing = diagnosis.at_least(fail_on)
    rules: dict[str, list[Finding]] = {}
    for finding in summary.in_reading_order(diagnosis):
        if finding in failing:
            rules.setdefault(finding.code, []).append(finding)
    for finding, *others in list(rules.values())[:MOST]:
        lines.append(
            f"{finding.severity} {finding.code} {finding.name} at {summary.where(finding, diagnosis)}"
            f"{_elsewhere(finding, others)}: {measured(finding)}"
        )
        # One sentence each where there are several.
        lines.append(f"  {summary.beginning(escape.sentence(finding.message), 600 if len(rules) == 1 else 200)}")
    if len(rules) > MOST:
        lines.append(f"and {' '.join(list(rules)[MOST:])}")
    if lines and failing:
        lines += _change(diagnosis)
    said, told = f"{word}: {rest}", _budgets(broken)
    if told and not lines:
        return "\n".join([*told, said])  # pytest's summary ends behind the first line.
    return "\n".join([said, *lines, *told]) if lines else ""


def _change(diagnosis: Diagnosis) -> list[str]:
    """What to change first, as code where that is short: whoever reads a failed test has no other report."""
    for cause in summary.to_change(diagnosis):
        if (fix := summary.recommended(cause)) is not None:
            code = escape.code(fix.change).splitlines()
            shown = [f"  {line}" for line in code] if len(code) <= MOST_CODE else []
            return [f"change for {cause.cause}: {escape.name(fix.fix)}", *shown]
    return []


def _elsewhere(finding: Finding, others: Sequence[Finding]) -> str:
    """``, and at c2, c3``: the other layers of the same rule; how many findings there are more, where they name none."""
    layers = {f.layer: None for f in others if f.layer not in (None, finding.layer)}
    if not others or len(layers) < len(others):
        return f" and {len(others)} more" if others else ""
    return f", and at {names(escape.name(layer or '') for layer in layers)}"


def _budgets(broken: Sequence[limits.Violation]) -> list[str]:
    """The worst place of each budget, and how many more there are."""
    by_budget: dict[str, list[limits.Violation]] = {}
    for violation in broken:
        by_budget.setdefault(violation.budget.text, []).append(violation)
    lines = []
    for found in by_budget.values():
        more = f" (and at {counted(len(found) - 1, 'more place')})" if len(found) > 1 else ""
        lines.append(f"budget {escape.sentence(str(max(found, key=_beyond)))}{more}")
    return [*lines[:MOST], *([f"and {len(lines) - MOST} more budgets"] if len(lines) > MOST else [])]


def _beyond(violation: limits.Violation) -> float:
    """How far beyond its budget a number lies; what is no number comes first."""
    if violation.signal is None or math.isnan(violation.signal.value):
        return math.inf
    return violation.signal.value if violation.budget.upper else -violation.signal.value


def codes(given: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """``"GS3,GS5"`` or a sequence → prefixes."""
    if given is None:
        return None
    items = given.split(",") if isinstance(given, str) else given
    return tuple(item.strip().upper() for item in items)
