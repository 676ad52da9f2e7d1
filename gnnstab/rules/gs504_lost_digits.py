"""GS504 lost-digits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from gnnstab.errors import NotEvaluable
from gnnstab.records import Finding, Signal, Signals
from gnnstab.rules.base import Rule, rule, threshold
from gnnstab.rules.queries import measured, percent


@rule("GS504", "lost-digits", cause="precision", severity="warning", confidence="high")
class LostDigits(Rule):
    """A number format cannot hold the differences of what it is given, or a cast to whole numbers takes them away.

    ## Why it matters
    bf16 keeps 8 bits, fp16 11, fp32 24. Values that are large beside their differences (hours since a date, coordinates
    from a far origin) lose these, and nothing overflows: 230 000 hours are a multiple of 1024 in bf16, so that 2000
    hours in a row become three numbers.

    ## What to do
    Subtract a reference (the latest time, the mean of the coordinates) in the format that the data is held in, then
    cast. Keep ids and types in a tensor of int64 of their own, cast before anything is scaled. Under autocast, compute
    encodings of time and place with `torch.autocast(device_type, enabled=False)`.

    ## How it is measured
    The RMS of what a cast (`.to`, `.half`, autocast at a matrix product) rounds away of a tensor of the batch, of
    differences of such tensors (also of whole numbers that are gathered, and cast before), or of angles made of them for a sine or cosine, over the standard deviation of its
    column, and how many distinct values remain. Columns whose spread is below three steps of the format that they are
    stored in, where a step is a quarter or more, or, in 16 bits beyond the whole numbers, which are one number.

    Columns that are cast to whole numbers and looked up in a table or given on as numbers (cause: indistinguishable
    nodes): values between -1 and 1, or of mean 0 and deviation 1, most of them no whole ones, of which at most 3 whole
    numbers and half as many as before are left, where no gradient shows another reader; ids beyond the whole numbers
    that their format holds exactly (256 in bf16, 2048 in fp16), where rows share them. In a run: a weight that is given
    4 or more columns of a tensor of whole numbers, all of them 0, and has a gradient of 0 in every step.

    ## When it is silent
    The model may not need the column, or its ids may be codes with gaps wider than the steps of the format.

    ## Sources
    IEEE 754; Kalamkar et al. 2019, *A Study of BFLOAT16 for Deep Learning Training*, arXiv 1905.12322. Measured:
    healthy programs under bf16 and fp16 lose less than 1 % of the spread.
    """

    lost: float = threshold(
        0.1, unit="share of the standard deviation", source="derived: an offset of 90 standard deviations in bf16"
    )

    steps: float = threshold(20, unit="steps", source="heuristic: a flag that no batch of so many sets")

    def check(self, signals: Signals) -> Iterator[Finding]:
        """One finding for each tensor."""
        if not signals.find("place.rms") and not signals.find("place.lost_digits"):
            raise NotEvaluable("needs a forward of the model: pass a batch (--model pkg.mod:factory --batch FILE)")
        for signal in measured(signals.find("place.lost_digits")):
            detail = signal.detail
            if detail.get("how") == "zeros":
                yield from self._zeros(signal, signals)
            elif signal.value > self.lost and detail.get("how") == "scaled":
                yield self._scaled(signal)
            elif signal.value > self.lost and detail.get("how"):
                yield self._computed(signal)
            elif signal.value > self.lost and "format" in detail:
                yield self.finding(
                    f"{signal.layer} is cast to {detail['format']}, which cannot hold its differences: of {detail['before']} distinct values "
                    f"{detail['after']} are left (up to {detail['largest']:.3g}, standard deviation {detail['spread']:.3g}), and rounding "
                    f"amounts to {percent(signal.value)} of it. Subtract a reference before the cast, or leave {signal.layer} in its format.",
                    limit=self.lost,
                    signal=signal,
                )

    def _zeros(self, signal: Signal, signals: Signals) -> Iterator[Finding]:
        """One batch may have flags that nobody set: the weight must have had a gradient of 0 in every step of a run."""
        weight = f"{signal.detail['module']}.weight"
        never = {str(name) for s in signals.find("optimizer.never_updated") for name in s.detail.get("zero", ())}
        steps = [s.step for s in signals.find("gradient.norm") if s.step is not None]
        if weight in never and max(steps, default=0) + 1 >= self.steps:
            yield self.finding(
                f"all {signal.detail['columns']} columns of {signal.layer} that {signal.detail['module']} is given are 0 in all {signal.detail['before']} rows, "
                f"in whole numbers, and {weight} got a gradient of exactly 0 in every step: the nodes are alike in them. If they "
                "held values below 1 before the table was cast to whole numbers, cast the columns of ids alone; if they are meant to be empty, leave them out.",
                limit=self.lost,
                signal=signal,
                cause="indistinguishable-nodes",
                confidence="medium",
            )

    def _scaled(self, signal: Signal) -> Finding:
        detail = signal.detail
        size = f"up to ±{detail['largest']:.3g}, {percent(detail['zeros'])} of them become 0"
        read = "are looked up alike" if detail["looked_up"] else "are one and the same number"
        return self.finding(
            f"{signal.layer} is cast to whole numbers{_line(detail)}, and nothing else reads those values: they are scaled ({size}), and of "
            f"{detail['before']} distinct ones {detail['after']} are left. Nodes that differ in them {read}. Leave ids as they are where the "
            "other columns are scaled, or give the values on as they are.",
            limit=self.lost,
            signal=signal,
            cause="indistinguishable-nodes",
        )

    def _computed(self, signal: Signal) -> Finding:
        detail = signal.detail
        size = f"numbers up to {detail['largest']:.3g} in {detail['format']}"
        if detail["how"] == "stored":
            said = (
                f"column {detail['column']} of {signal.layer} is stored in {detail['format']}, whose neighbouring numbers lie {detail['unit']:.3g} apart at "
                f"its size (up to {detail['largest']:.3g}): its {detail['before']} rows hold {detail['after']} distinct, and what differed by less "
                "was lost before the model saw it. Subtract a reference before the numbers are stored, or keep them in a wider format."
            )
        elif detail["how"] == "spaced":
            said = (
                f"{signal.layer} holds ids in {detail['format']}, whose neighbouring numbers lie {detail['unit']:.3g} apart at their size (up to "
                f"{detail['largest']:.0f}); they are cast to whole numbers{_line(detail)} and looked up: {detail['before']} rows hold {detail['after']} distinct, and ids that "
                "differ by less are one row of the table. Keep ids in a tensor of whole numbers (int64) of their own."
            )
        elif detail["how"] == "difference":
            said = (
                f"differences of {signal.layer} are taken of {size}, which are rounded by {percent(signal.value)} of what comes out "
                f"(standard deviation {detail['spread']:.3g}, {detail['after']} distinct values of {detail['before']}). Take them in float64, "
                "or of integers, before the cast."
            )
        else:
            said = (
                f"the {detail['how']} of what is made of {signal.layer} is taken of {size}, which are rounded by {detail['spread']:.2g} rad: what comes "
                "out is mostly chance. Compute the angle in float32 (torch.autocast(device_type, enabled=False)), or of the time since a reference."
            )
        return self.finding(said, limit=self.lost, signal=signal)


def _line(detail: Mapping[str, object]) -> str:
    """Where it happens, in words; empty where that is not known."""
    return f" in {detail['line']} ({detail['text']})" if detail.get("line") else ""
