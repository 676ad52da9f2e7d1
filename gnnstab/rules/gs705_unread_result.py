"""GS705 unread-result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gnnstab.errors import NotEvaluable
from gnnstab.records import Finding, Signal, Signals
from gnnstab.records.vocabulary import OPTIMIZER_UNDONE, PLACE_OUTPUT, PLACE_RMS, PLACE_UNREAD_RESULT
from gnnstab.rules.base import Rule, rule, threshold
from gnnstab.rules.learned import has_learned
from gnnstab.rules.queries import measured
from gnnstab.rules.run_losses import learned_half, stood_still


@rule("GS705", "unread-result", cause="", severity="warning", confidence="high")
class UnreadResult(Rule):
    """A line of the model computes something that nothing reads.

    ## Why it matters
    `h + self.places` and `scores.masked_fill(mask, -inf)` change nothing: they give a new tensor, and where no name is
    given to it, or the name is not read again, the model runs as if the line were not there. A model without its
    encoding of places, its mask or its skip may train without an error and learn next to nothing.

    ## What to do
    Keep the result, `h = h + self.places`, or take the line out.

    ## How it is measured
    The bytecode of the model's own classes, and of the functions that they name, tells which values are thrown away: those
    of a statement by itself, and those of a name that is not read before its next value or the end of the function. In one
    forward of a copy the tensors that such lines give are looked at: floating point, a row for each node or more, no
    view of what they were given, and nothing that counts or sums up; a module that is called for nothing, and
    keeps nothing of the call.

    A statement is a warning where its result differs from what it was given. So is a name where the loss of a run hardly
    fell, or few steps on a copy did not lower it.

    The cause is *indistinguishable nodes* where the result holds half as many different rows again as what it was given, as
    with places that are added to ids; *masking* of a mask; *no residual* where both parts of a sum are learned; and *never
    updated* of a module with weights of its own.

    ## When it is silent
    Results of in-place functions, names that begin with `_`, several results of one call, and modules at whose parts
    somebody listens by a hook. It is information where the run has learned all the same.

    ## Sources
    Python's reference on expression statements. Measured: a positional encoding that was added and not kept.
    """

    changes: float = threshold(
        1e-3, unit="× RMS of what is given", source="derived: three digits of it stay as they are"
    )

    told_apart: float = threshold(
        1.5,
        unit="× different rows",
        source="heuristic: rounding tells apart a few; places do so with all that hold the same",
    )

    def check(self, signals: Signals) -> Iterator[Finding]:
        """One finding for each line."""
        found = measured(signals.find(PLACE_UNREAD_RESULT))
        if not found and not signals.find(PLACE_RMS) and not signals.find(PLACE_OUTPUT):
            raise NotEvaluable("needs a forward of the model: pass a batch (--model pkg.mod:factory --batch FILE)")
        for signal in found:
            detail = signal.detail
            name, module = str(detail.get("name", "")), str(detail.get("module", ""))
            changed = float(detail.get("changes", 1.0)) > self.changes
            counts = changed and not has_learned(signals) and not learned_half(signals)
            loud = counts and (not name or _hardly_learns(signals))
            whose = f"what {module} returns is" if module else f"{_shape(detail)} numbers are"
            kept = (
                f"given to `{name}`, which nothing reads"
                if name
                else "thrown away: the model runs as without that line"
            )
            apart = self._told_apart(signal)
            yield self.finding(
                f"{detail.get('line')}, `{str(detail.get('code'))[:80]}`: {whose} computed and {kept}."
                + (f" They would tell rows apart that are the same without them: {apart}." if apart else "")
                + " Keep the result (h = …), or take the line out.",
                severity="warning" if loud else "info",
                limit=0.0,
                signal=signal,
                cause=self._cause(detail, bool(apart)),
            )

    def _told_apart(self, signal: Signal) -> str:
        before, after = (float(signal.detail.get(key, 0)) for key in ("before", "after"))
        if not 0 < self.told_apart * before <= after:
            return ""
        return f"of {signal.detail.get('rows')} rows {before:.0f} differ, and {after:.0f} would"

    @staticmethod
    def _cause(detail: Mapping[str, Any], apart: bool) -> str:
        if apart and not detail.get("masks"):
            return "indistinguishable-nodes"
        if detail.get("masks"):
            return "masking"
        if detail.get("sums"):
            return "no-residual"
        return "never-updated-parameter" if detail.get("learns") else ""


def _shape(detail: Mapping[str, Any]) -> str:
    return " × ".join(str(size) for size in detail.get("shape", ()))


def _hardly_learns(signals: Signals) -> bool:
    """True where the loss of a run, or of steps on a copy, hardly fell."""
    if stood_still(signals.series):
        return True
    tried = [s.detail for s in signals.find(OPTIMIZER_UNDONE)]
    return any("cause" not in d and not d.get("learns") and float(d["best"]) > 0.5 * float(d["first"]) for d in tried)
