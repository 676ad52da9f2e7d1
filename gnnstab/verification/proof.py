"""A diagnosis whose recommended fixes have been tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from gnnstab.records import Cause, Diagnosis, FixAdvice
from gnnstab.verification.protocol import verify
from gnnstab.verification.sweep import Progress
from gnnstab.verification.verdict import Verdict

_ORDER = ("confirmed", "inconclusive", "not-tested", "no-effect", "made-worse")


def prove(
    diagnosis: Diagnosis,
    model: nn.Module,
    *,
    batch: Any,
    loss: Any = None,
    precision: str = "fp32",
    progress: Progress | None = None,
    **options: Any,
) -> Diagnosis:
    """The diagnosis with a verdict on every fix of a root or contributing cause; confirmed fixes come first.

    A cause that was held for the root, and none of whose fixes had any effect, is called contributing: the verification
    spoke against it. ``options`` are those of `verify`; the short training has 100 steps unless they say otherwise.
    """
    judged = [c for c in diagnosis.causes if c.status in ("root-cause", "contributing")]
    names = list(dict.fromkeys(advice.fix for cause in judged for advice in cause.fixes))
    if not names:
        return diagnosis
    found = verify(
        model, names, batch=batch, loss=loss, precision=precision, progress=progress, **{"steps": 100, **options}
    )
    verdicts = {verdict.fix: verdict for verdict in found}
    causes = tuple(_proven(cause, verdicts) if cause in judged else cause for cause in diagnosis.causes)
    return replace(diagnosis, causes=causes)


def _proven(cause: Cause, verdicts: Mapping[str, Verdict]) -> Cause:
    fixes = [verdicts[advice.fix].as_advice(advice) for advice in cause.fixes]
    ordered = tuple(sorted(fixes, key=lambda advice: _ORDER.index(advice.verdict)))
    if cause.status == "root-cause" and ordered and _spoke_against(ordered):
        reason = f"{cause.reason} Verification spoke against it as the root: none of its fixes had an effect."
        return replace(cause, status="contributing", reason=reason, fixes=ordered)
    return replace(cause, fixes=ordered)


def _spoke_against(fixes: Sequence[FixAdvice]) -> bool:
    return all(advice.verdict == "no-effect" for advice in fixes)
