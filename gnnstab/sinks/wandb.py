"""Weights & Biases: metrics per step, findings as a table, the page as HTML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gnnstab.errors import MissingExtra
from gnnstab.feed import PREFIX
from gnnstab.records import Diagnosis, Finding
from gnnstab.report import render, summary
from gnnstab.report.escape import name as short_name

_COLUMNS = ("code", "name", "severity", "layer", "head", "step", "signal", "value", "threshold", "message")


class WandbSink:
    """Logs to a run of Weights & Biases, also offline.

    ``run`` is a run that is already going on, which is left open; without one, ``wandb.init(**options)`` starts one
    (``mode="offline"`` needs no account), which is finished at the end.
    Raises `MissingExtra` when wandb is not installed.
    """

    def __init__(self, run: Any = None, **options: Any) -> None:
        try:
            import wandb
        except ImportError as error:
            raise MissingExtra("wandb", "wandb") from error
        self._wandb = wandb
        self._owned = run is None
        self.run = wandb.init(**options) if run is None else run
        """The run that is logged to."""

        # Steps are logged as a metric of their own: the run's step counter may belong to the user's own logging.
        self.run.define_metric(f"{PREFIX}/step")
        self.run.define_metric(f"{PREFIX}/*", step_metric=f"{PREFIX}/step")

    def on_step(self, step: int, values: Mapping[str, float]) -> None:
        """Log the numbers of one step."""
        self.run.log({f"{PREFIX}/step": step, **{f"{PREFIX}/{name}": value for name, value in values.items()}})

    def on_finding(self, finding: Finding) -> None:
        """Log a finding's number under its code."""
        step = {} if finding.step is None else {f"{PREFIX}/step": finding.step}
        self.run.log({**step, f"{PREFIX}/finding/{finding.code}": finding.value})

    def on_end(self, diagnosis: Diagnosis) -> None:
        """Log the table of findings and the page, put the verdict into the summary, and finish an own run."""
        rows = [_row(f) for f in summary.in_reading_order(diagnosis)]
        page = self._wandb.Html(render(diagnosis, "html"), inject=False)
        table = self._wandb.Table(columns=list(_COLUMNS), data=rows)
        self.run.log({f"{PREFIX}/report": page, f"{PREFIX}/findings": table})
        self.run.summary[f"{PREFIX}/verdict"] = summary.state(diagnosis)
        self.run.summary[f"{PREFIX}/root_causes"] = ", ".join(c.cause for c in diagnosis.root_causes())
        if self._owned:
            self.run.finish()


def _row(finding: Finding) -> list[Any]:
    # One type per column, or the table is refused: numbers as text where they may be missing.
    texts = [finding.code, finding.name, finding.severity, short_name(finding.layer or "", 200)]
    places = ["" if n is None else str(n) for n in (finding.head, finding.step)]
    return [*texts, *places, finding.signal, finding.value, finding.threshold, short_name(finding.message, 1000)]
