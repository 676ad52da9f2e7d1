"""GS903 incomplete-trace."""

from __future__ import annotations

from collections.abc import Iterator

from gnnstab.errors import NotApplicable
from gnnstab.records import Finding, Signals
from gnnstab.rules.base import Rule, rule, threshold

MOST_NAMED = 10
"""Ranks that one finding names."""


@rule("GS903", "incomplete-trace", cause="", severity="info", confidence="high")
class IncompleteTrace(Rule):
    """The trace ends before the run did, or rows, steps or processes of it are missing.

    ## Why it matters
    The last moments before a crash are often the ones that count, and up to one flush of them is missing. The model is
    not the matter.

    ## What to do
    Close the monitor (`with gnnstab.Monitor(...)`) to have the rest; everything up to the last flush is there.

    ## How it is measured
    A trace that was not closed: the process was killed, or is still running. Rows that could not be written, or that no
    writer makes: of a layer, series, mode or level of resolution that is not listed, with impossible numbers, or
    damaged events. Statistics, measures or steps of which no row is left. Steps of the optimizer of which nothing was
    seen. A run that ended with an exception before its first update, or whose only update came after all of its losses;
    weights that moved though no step was told. Of a distributed run, ranks without a file that can be read.

    ## When it is silent
    Where the run is complete. A run that still goes on, or an optimizer that is stepped twice after one backward on
    purpose, is told too.

    ## Sources
    Documentation of the trace.
    """

    passes: float = threshold(8, unit="losses", source="as GS604: so many updates that move nothing are no beginning")

    def check(self, signals: Signals) -> Iterator[Finding]:
        """At most one finding of each kind."""
        if signals.kind != "trace":
            raise NotApplicable("not a trace")
        steps = signals.context.get("steps")
        if signals.context.get("closed") is False:
            seen = f" with {steps} steps recorded" if isinstance(steps, int) else ""
            yield self._finding(
                f"the trace was not closed{seen}: the run was killed, or is still going on; at most the last flush is missing.",
                0,
            )
        unseen = signals.context.get("steps_unseen")
        if isinstance(unseen, (int, float)) and unseen > 0:
            yield self._finding(
                f"{unseen:.0f} steps of the optimizer came with nothing seen of the model since the step before: its hooks were "
                "removed, or its forward ran in another thread or process, or another model was trained.",
                int(unseen),
                "warning",
                "steps",
            )
        yield from self._untold(signals)
        if missing := signals.context.get("ranks_missing"):
            ranks = f"{', '.join(map(str, missing[:MOST_NAMED]))}{', …' if len(missing) > MOST_NAMED else ''}"
            yield self._finding(
                f"nothing is here of rank{'s' if len(missing) > 1 else ''} {ranks}: the file is missing or cannot be read, and what "
                "happened there is not judged. Copy the files of all ranks into one folder.",
                len(missing),
                "warning",
                "ranks",
            )
        lost = signals.context.get("rows_lost")
        if isinstance(lost, (int, float)) and lost > 0:
            yield self._finding(f"{lost:.0f} rows could not be written and are missing.", int(lost), "warning")
        doubtful = signals.context.get("rows_doubtful")
        if isinstance(doubtful, int) and doubtful > 0:
            yield self._finding(
                f"{doubtful} rows are malformed: of no layer, series, name, mode or level of resolution that there is, with numbers that "
                "no tensor has, or with an event that cannot be read in full. What they hold is not judged; record the run again.",
                doubtful,
                "warning",
            )
        if gone := signals.context.get("tables_missing"):
            yield self._finding(
                f"the trace holds no row of its {' and '.join(gone)}, although it lists what was recorded: nothing of them is judged. "
                "Record the run again.",
                len(gone),
                "warning",
                "tables",
            )

    def _untold(self, signals: Signals) -> Iterator[Finding]:
        """Runs without an update, and those whose updates nobody told of."""
        told, error = signals.context.get("untold") or {}, signals.context.get("ended_by")
        passes = told.get("passes", 0)
        if told.get("updates") and passes >= self.passes:
            yield self._finding(
                f"the only update of the run came after all of its {passes} losses, so that nothing shows what training does. Step after each backward, "
                "or after a few of them.",
                passes,
                "warning",
                "losses",
            )
        elif told.get("moved") and passes > 1 and not told.get("updates"):
            how = (
                "the optimizer that was given never stepped: pass the one whose step() is called, or leave it out and call monitor.step() after each update"
                if told.get("optimizer")
                else "nobody told of a step: call monitor.step() after each update, or pass the optimizer"
            )
            yield self._finding(
                f"the weights have moved, and {how}. All {passes} losses or forwards were taken for one step.",
                passes,
                "warning",
                "passes",
            )
        elif error and not any(event.kind == "non-finite" for event in signals.events):
            yield self._finding(
                f"the run ended in its first step, before any update, with a {error}: nothing was trained.",
                1,
                "warning",
                "steps",
            )

    def _finding(self, message: str, number: int, severity: str = "info", unit: str = "rows") -> Finding:
        return self.finding(message, severity=severity, limit=0.0, name="", value=float(number), unit=unit)
