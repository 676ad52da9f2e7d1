"""What a calm verdict does not cover."""

from __future__ import annotations

import re
from collections import Counter

from gnnstab.characters import counted
from gnnstab.records import Diagnosis
from gnnstab.records.vocabulary import NOT_SEEN, WEIGHT_NON_FINITE
from gnnstab.report import escape

UNJUDGED = re.compile(
    r"(?:^|: )(\d+) tensors? (?:not judged, (?:meta|quantized|of several|attributes|storages)|in lists and)"
)
"""How notes count tensors that may hold NaN and are not looked at."""

LACKING = re.compile(r"(?:^|: )(\d+) only in the model, left as the factory made them")
"""How notes count what a checkpoint does not hold of the model that was judged with it."""


BY_LOSS = {
    "of use, your loss tells": "whether its sharp attention is of use (pass the loss)",
    "what a loss makes of them was not seen": "what a loss makes of NaN in the targets (pass it)",
}
"""What a finding says → what a loss would show."""


def not_covered(diagnosis: Diagnosis) -> tuple[str, ...]:
    """What a calm verdict does not cover: layers, the user's own data, rules that were not asked, findings hidden."""
    parts = []
    if left_out := diagnosis.context.get("left_out"):
        unread = [note.removeprefix("left out ").partition(": ")[0] for note in left_out]
        parts.append(f"{escape.name(', '.join(unread), 40)}, which could not be read")
    if beside := diagnosis.context.get("files_beside"):
        parts.append(f"{escape.name(str(beside), 40)}, to be named by itself")
    if missing := diagnosis.context.get("ranks_missing"):
        parts.append(f"rank{'s' * (len(missing) > 1)} {escape.name(', '.join(map(str, missing)), 40)} of the run")
    if unjudged := sum(int(found[1]) for note in diagnosis.target.notes for found in UNJUDGED.finditer(note)):
        parts.append(counted(unjudged, "stored tensor"))
    if lacking := max((int(m[1]) for note in diagnosis.target.notes for m in LACKING.finditer(note)), default=0):
        parts.append(f"{counted(lacking, 'tensor')} of the model, which the file lacks")
    if (blind := diagnosis.coverage.layers_expected - diagnosis.coverage.layers_observed) > 0:
        parts.append(counted(blind, "attention layer"))
    if not any(signal.source in ("batch", "training") for signal in diagnosis.signals):
        parts.append("your data and the training")
    parts += [escape.name(str(unseen), 120) for unseen in diagnosis.context.get(NOT_SEEN, ())]
    if diagnosis.context.get("closed") is False:
        parts.append("what came after the last step of a trace that was not closed")
    parts += [part for said, part in BY_LOSS.items() if any(said in f.message for f in diagnosis.findings)]
    if unasked := {rule.code for rule in diagnosis.rules if rule.reason == "not selected"}:
        parts.append(f"{len(unasked)} of {counted(len(diagnosis.rules), 'rule')}, not selected")
        if "GS502" in unasked and any(s.name == WEIGHT_NON_FINITE and s.value > 0 for s in diagnosis.signals):
            parts.append("the NaN or Inf in the weights (GS502)")
    hidden = Counter(item.origin for item in diagnosis.suppressed if item.finding.severity != "info")
    parts += [f"{counted(number, 'finding')}, hidden by the {origin}" for origin, number in sorted(hidden.items())]
    return tuple(parts)
