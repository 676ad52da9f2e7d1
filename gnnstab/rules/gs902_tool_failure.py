"""GS902 tool-failure."""

from __future__ import annotations

from collections.abc import Iterator

from gnnstab.records import Event, Finding, Signals
from gnnstab.rules.base import Rule, rule


@rule("GS902", "tool-failure", cause="", severity="warning", confidence="high")
class ToolFailure(Rule):
    """Something inside gnnstab failed.

    ## Why it matters
    What the failed part would have seen is unknown; the model is not the matter.

    ## What to do
    Report it with the trace or the checkpoint.

    ## How it is measured
    Failures of the recorder, which never stop the training, and of single rules, which never stop the others. The
    message names the part and the exception.

    ## When it is silent
    Never: it reports what happened.

    ## Sources
    The project's issue tracker.
    """

    def check(self, signals: Signals) -> Iterator[Finding]:
        """One finding per kind of failure, with how often it happened."""
        grouped: dict[str, list[Event]] = {}
        for event in signals.events:
            if event.kind == "tool-failure":
                grouped.setdefault(event.message, []).append(event)
        for message, events in grouped.items():
            times = f", {len(events)} times" if len(events) > 1 else ""
            yield self.finding(
                f"gnnstab itself failed at step {events[0].step}{times}: {message}. The run went on; what this part would have seen is "
                "unknown.",
                limit=0.0,
                name="",
                value=float(len(events)),
                layer=events[0].layer,
                step=events[0].step,
                unit="failures",
            )
