"""Small recorded runs, written without torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from os import PathLike

from gnnstab.records import Event, LayerFacts, Measure, SeriesKey, StepRow
from gnnstab.trace import TraceWriter

NAMES = ("net.conv1", "net.conv2", "net.conv3")


def record(
    path: str | PathLike[str], steps: int = 60, names: tuple[str, ...] = NAMES, *, overflow_at: int | None = None
) -> None:
    """Write a whole run whose first layer saturates."""
    for _ in recording(path, steps, names, overflow_at=overflow_at):
        pass


def recording(
    path: str | PathLike[str], steps: int, names: tuple[str, ...] = NAMES, *, overflow_at: int | None = None
) -> Iterator[int]:
    """Write a run step by step; every step is on the disk when it is yielded."""
    with TraceWriter(path, meta={"source": "training", "precision": "fp32"}) as writer:
        for i, name in enumerate(names):
            writer.layer(
                LayerFacts(name, "TransformerConv", i, True, (16, 16), 16, 3, False, 0.0, options={"beta": False})
            )
        sites = ("score", "output", "grad_input", "input")
        ids = [writer.series(SeriesKey(name, "train", 0, site)) for name in names for site in sites]
        for step in range(steps):
            rows = [row for i in range(len(names)) for row in _rows(step, i, len(names), overflow_at)]
            writer.sites(step, ids, rows)
            writer.measures([m for i, name in enumerate(names) for m in _measures(step, i, name)])
            writer.step(StepRow(step, 0.25 * step, 2.0 * math.exp(-step / 40), 1e-3, None, 0.5 + 0.1 * (step % 7)))
            if step == overflow_at:
                message = f"first non-finite value in the scores of {names[-1]}"
                writer.event(Event(step, "non-finite", names[-1], "train", 0, "score", "made-here", message=message))
            writer.flush()
            yield step


def _rows(step: int, i: int, count: int, overflow_at: int | None) -> list[tuple[float, float, float, int, int]]:
    size = (4.0 + step) / (1 + i)
    broken = overflow_at is not None and step >= overflow_at and i == count - 1
    score = (-size, math.inf, math.inf, 90, 2) if broken else (-size, size, size / 3, 90, 0)
    return [
        score,
        (-3.0, 4.0, 1.0 + 0.02 * step, 160, 0),
        (-1e-3, 1e-3, 2e-4 * (1 + i), 160, 0),
        (-2.0, 2.0, 1.0, 160, 0),
    ]


def _measures(step: int, i: int, name: str) -> list[Measure]:
    entropy = max(0.05, 0.95 - step * 0.014 / (1 + 2 * i))
    return [
        Measure(step, name, "train", 0, "attention.entropy", -1, entropy),
        Measure(step, "", "train", 0, "degree.median", -1, 9.0),
    ]
