"""For tests of your own: assert that a model is numerically stable on a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gnnstab import budgets as limits
from gnnstab.baseline import read
from gnnstab.records import Diagnosis
from gnnstab.report import escape, summary
from gnnstab.report.faces import spoken
from gnnstab.report.numbers import measured

if TYPE_CHECKING:
    import os

    from torch import nn

MOST = 10
"""Findings named in the message of a failure."""


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
    ordered = [f for f in summary.in_reading_order(diagnosis) if f in failing]
    for finding in ordered[:MOST]:
        lines.append(
            f"{finding.severity} {finding.code} {finding.name} at {summary.where(finding, diagnosis)}: {measured(finding)}"
        )
        lines.append(f"  {escape.sentence(finding.message)}")
    if len(ordered) > MOST:
        lines.append(f"and {len(ordered) - MOST} more")
    lines += [f"budget {escape.sentence(str(violation))}" for violation in broken]
    return "\n".join([f"{word}: {rest}", *lines]) if lines else ""


def codes(given: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """``"GS3,GS5"`` or a sequence → prefixes."""
    if given is None:
        return None
    items = given.split(",") if isinstance(given, str) else given
    return tuple(item.strip().upper() for item in items)
