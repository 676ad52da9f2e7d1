"""Numbers as people read them: three digits, no false precision, NaN and Inf by name."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gnnstab.records import Finding


def number(value: float | None) -> str:
    """Three significant digits; powers of ten only where plain digits would be hard to count; ``–`` for None."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e6 or size < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.0f}" if size >= 999.5 else f"{value:.3g}"


def compared(value: float, threshold: float, unit: str) -> str:
    """``0.229 < 0.35 fraction of ln(in-degree)``: a value, its limit, and on which side of it the value lies."""
    if math.isnan(value):
        return "not finite"  # a NaN also stands for an Inf that was not kept
    if math.isnan(threshold):
        return f"{number(value)} {unit}".rstrip()
    sign = "<" if value < threshold else ">" if value > threshold else "="
    left, right = number(value), number(threshold)
    if left == right and sign in "<>":  # three digits hide on which side it lies
        left, right = f"{value:.6g}", f"{threshold:.6g}"
    return f"{left} {sign} {right} {unit}".rstrip()


def measured(finding: Finding) -> str:
    """``attention.entropy 0.229 < 0.35 fraction of ln(in-degree)``: the signal of a finding beside its limit."""
    return f"{finding.signal} {compared(finding.value, finding.threshold, finding.unit)}".strip()
