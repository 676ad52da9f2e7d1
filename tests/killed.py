"""A process that records until it is killed, and what the trace that it leaves must be."""

from __future__ import annotations

from gnnstab.trace import Trace

WRITE = """
import sys
import numpy as np
from gnnstab.records import Event, LayerFacts, Measure, SeriesKey, StepRow
from gnnstab.trace import TraceWriter

writer = TraceWriter(sys.argv[1], flush_seconds=0.02, budget=int(sys.argv[2]))
writer.layer(LayerFacts("gnn1", "TransformerConv", 0, True))
ids = [writer.series(SeriesKey(f"gnn{i}", "train", 0, "score")) for i in range(10)]
step = 0
while True:
    writer.sites(step, ids, np.full((10, 5), float(step)))
    writer.step(StepRow(step, 0.0, 1.0, None, None, None))
    if step % 20 == 0:
        writer.measures([Measure(step, "gnn1", "train", 0, "attention.entropy", -1, 0.5)])
    if step % 50 == 0:
        writer.event(Event(step, "note"))
        writer.flush()
        print(step, flush=True)
    step += 1
"""


def check_consistent(trace: Trace) -> int:
    """The rows of a snapshot fit together; returns the last step of its statistics."""
    assert trace.notes == ()
    assert [layer.name for layer in trace.layers()] == ["gnn1"]
    arrays = trace.sites()
    assert len(arrays) == 10
    spans = {int(rows["span"].sum()) for rows in arrays.values()}
    # All series are written together, so no snapshot may show some of them further than others.
    assert len(spans) == 1
    for rows in arrays.values():
        assert list(rows["step"]) == sorted(rows["step"])
    last = spans.pop() - 1
    assert trace.last_step is not None
    assert trace.last_step >= max(last, trace.step_arrays()["step"][-1])
    return last
