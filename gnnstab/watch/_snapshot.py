"""What one frame is drawn from."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gnnstab.evaluation import diagnose_trace
from gnnstab.records import Diagnosis
from gnnstab.trace import Trace


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A run at one moment."""

    diagnosis: Diagnosis
    """Findings so far, and the series, events and layers behind them."""

    path: str
    step: int | None
    """The last recorded step; None for a trace without any row."""

    seconds: float
    """Time between the first and the last recorded training step; NaN when there are none."""

    steps: int
    """Recorded training steps."""

    lr: float | None
    scale: float | None
    """GradScaler's scale, where known."""

    complete: bool
    """True when the run has ended its trace."""

    notes: tuple[str, ...] = ()
    """What could not be read."""


def take(trace: Trace) -> Snapshot:
    """Read and diagnose an open trace."""
    rows, diagnosis = trace.steps(), diagnose_trace(trace)
    # Without the note that the trace has no end: the second line of a frame says whether a run is going on.
    kept = tuple(f for f in diagnosis.findings if not (f.code == "GS903" and f.value == 0))
    known = [row.time for row in rows if row.time == row.time]
    return Snapshot(
        diagnosis=replace(diagnosis, findings=kept),
        path=trace.path,
        step=trace.last_step,
        seconds=known[-1] - known[0] if known else float("nan"),
        steps=len({row.step for row in rows}),
        lr=next((row.lr for row in reversed(rows) if row.lr is not None), None),
        scale=next((row.scale for row in reversed(rows) if row.scale is not None), None),
        complete=trace.complete,
        notes=trace.notes,
    )
