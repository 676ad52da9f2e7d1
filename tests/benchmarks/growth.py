"""How the cost of the monitor and of a diagnosis grows, measured and plotted.

    python tests/benchmarks/growth.py FOLDER [--only layers,edges,heads,steps] [--seconds 8]

Layers, edges and heads: a monitored training step (light tier at every step, trace on disk) as a ratio to an unmonitored
one. Two copies of a network take turns on the same batch, block by block, so that what else the machine does reaches
both alike; told are the median and the quartiles of the blocks' ratios of processor time, of all threads, and, where the system counts them, the ratio of
the instructions of both, the writer's thread and the last flush included. Steps: processor time and peak memory of `gnnstab check`
on a trace of that many steps, in a process of its own (see trace_scale.py).

FOLDER gets growth.json, one figure per quantity and growth.svg with all of them; a quantity that is not measured this
time is drawn from the growth.json that is there.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
import trace_scale
from instructions import Instructions
from matplotlib.axes import Axes
from torch import Tensor, nn
from torch_geometric.nn import TransformerConv

import gnnstab

LIGHT_ONLY = 1_000_000_000
"""A full-tier interval that is never reached after the first step."""

BLOCK_SECONDS = 0.02
"""Time that a block of steps takes at least, so that the clock and the writer's thread even out."""

WARM_UP = 20
"""Steps of each copy before anything is timed; a second of them is enough."""


COUNTED_SECONDS = 1.0
"""About how long the steps take whose instructions are counted."""


Point = dict[str, Any]
"""``at``, the value of the quantity, and what was measured there."""


@dataclass(frozen=True)
class Shape:
    """A stack of TransformerConvs on a random graph."""

    layers: int = 3
    edges: int = 2048
    heads: int = 2
    nodes: int = 256
    width: int = 32


SHAPES = {
    "layers": [Shape(layers=n) for n in (2, 4, 8, 16, 32)],
    "edges": [replace(Shape(nodes=1000), edges=n) for n in (256, 2000, 20_000, 60_000, 200_000)],
    "heads": [Shape(heads=n) for n in (1, 2, 4, 8)],
}
STEPS = (1000, 10_000, 100_000, 1_000_000)


class Net(nn.Module):
    """Averaged heads and a ReLU after each layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.width
        self.convs = nn.ModuleList(
            [TransformerConv(width, width, heads=shape.heads, concat=False) for _ in range(shape.layers)]
        )

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        for conv in self.convs:
            x = conv(x, edge_index).relu()
        return x


def stepper(model: nn.Module, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor]) -> Callable[[], None]:
    def step() -> None:
        optimizer.zero_grad()
        model(*batch).square().mean().backward()
        optimizer.step()

    return step


def timed(step: Callable[[], None], count: int) -> float:
    """Seconds of processor time per step, those of the writer's thread included."""
    begun = time.process_time()
    for _ in range(count):
        step()
    return (time.process_time() - begun) / count


def settled(step: Callable[[], None]) -> float:
    """Seconds per step after the first ones."""
    taken: list[float] = []
    while len(taken) < WARM_UP and sum(taken) < 1.0:
        taken.append(timed(step, 1))
    return statistics.median(taken)


def ratio(shape: Shape, seconds: float) -> Point:
    """Monitored over unmonitored steps of one shape, measured for about ``seconds``."""
    torch.manual_seed(0)
    batch = torch.randn(shape.nodes, shape.width), torch.randint(0, shape.nodes, (2, shape.edges))
    alone = Net(shape)
    watched = copy.deepcopy(alone)
    steps = [(model, torch.optim.SGD(model.parameters(), lr=1e-3)) for model in (alone, watched)]
    plain, monitored = (stepper(model, optimizer, batch) for model, optimizer in steps)
    ratios, times = [], []
    counter = instructions()  # Before the monitor, so that it counts the thread of its writer as well.
    with (
        tempfile.TemporaryDirectory() as folder,
        gnnstab.Monitor(
            watched, optimizer=steps[1][1], trace=Path(folder) / "run.gnnstab", schedule=LIGHT_ONLY, on_finding="ignore"
        ) as monitor,
    ):
        settled(monitored)
        count = max(1, round(BLOCK_SECONDS / settled(plain)))
        until = time.perf_counter() + seconds
        while time.perf_counter() < until or len(ratios) < 8:
            # Every other round the monitored copy goes first.
            order = (plain, monitored) if len(ratios) % 2 else (monitored, plain)
            taken = {step: timed(step, count) for step in order}
            ratios.append(taken[monitored] / taken[plain])
            times.append(taken[plain])
        usual = statistics.median(times)
        counted = counter and executed(counter, plain, monitored, monitor, max(4, round(COUNTED_SECONDS / usual)))
    low, median, high = statistics.quantiles(ratios, n=4)
    return {"low": low, "median": median, "high": high, "milliseconds": 1000 * usual, "instructions": counted}


@cache
def instructions() -> Instructions | None:
    """The one counter of this process, where the system has one for us; processors count only a few things at once."""
    try:
        return Instructions()
    except OSError:
        return None


def executed(
    counter: Instructions,
    plain: Callable[[], None],
    monitored: Callable[[], None],
    monitor: gnnstab.Monitor,
    count: int,
) -> float:
    """Ratio of the instructions of ``count`` steps each; everything recorded is on the disk at both ends."""
    monitor.trace.close()
    marks = [counter.count()]
    timed(plain, count)
    marks.append(counter.count())
    timed(monitored, count)
    monitor.trace.close()
    marks.append(counter.count())
    return (marks[2] - marks[1]) / (marks[1] - marks[0])


def measure(name: str, seconds: float) -> list[Point]:
    """The points of one quantity."""
    points: list[Point] = []
    if name == "steps":
        for count in STEPS:
            with tempfile.TemporaryDirectory() as folder:
                path = str(Path(folder) / "run.gnnstab")
                written = trace_scale.write(path, count, series=20, budget=64 * 2**20)
                points.append({"at": count, "mib": written["final_mib"], **trace_scale.check(path)})
            print(points[-1], flush=True)
        return points
    for shape in SHAPES[name]:
        points.append({"at": asdict(shape)[name], **ratio(shape, seconds)})
        print(points[-1], flush=True)
    return points


COLOR, SECOND = "#2a6f97", "#c8553d"


def draw_ratio(axes: Axes, name: str, points: Sequence[Point]) -> None:
    at = [p["at"] for p in points]
    low, high = ([abs(p["median"] - p[end]) for p in points] for end in ("low", "high"))
    median = [p["median"] for p in points]
    axes.errorbar(
        at, median, (low, high), fmt="o", color="0.6", ms=3.5, lw=0.9, capsize=2, label="processor time, quartiles"
    )
    counted = [p for p in points if p["instructions"]]
    if counted:
        there = [p["at"] for p in counted]
        axes.plot(there, [p["instructions"] for p in counted], "o-", color=COLOR, ms=4, label="instructions")
    axes.legend(frameon=False, loc="upper right")
    axes.axhline(1.0, color="0.55", lw=0.8)
    axes.set(xscale="log", xlabel=name, ylabel="monitored / unmonitored step", ylim=(0.9, 1.6))
    axes.set_title(f"a training step, by {name}")
    ticks(axes, at)


def draw_steps(axes: Axes, points: Sequence[Point]) -> None:
    at = [p["at"] for p in points]
    axes.plot(at, [p["cpu_s"] for p in points], "o-", color=COLOR, ms=4)
    axes.set(xscale="log", xlabel="steps in the trace", ylim=(0, None))
    axes.set_ylabel("processor time, s", color=COLOR)
    beside = axes.twinx()
    beside.plot(at, [p["peak_mb"] for p in points], "s--", color=SECOND, ms=4)
    beside.set_ylabel("peak memory, MB", color=SECOND)
    beside.set_ylim(0, None)
    beside.spines["top"].set_visible(False)
    axes.set_title("gnnstab check, by steps")
    ticks(axes, at)


def ticks(axes: Axes, at: Sequence[float]) -> None:
    axes.set_xticks(at, [f"{n / 1e6:g} M" if n >= 1e6 else f"{n / 1e3:g} k" if n >= 1000 else f"{n:g}" for n in at])
    axes.minorticks_off()


def draw(axes: Axes, name: str, points: Sequence[Point]) -> None:
    if name == "steps":
        draw_steps(axes, points)
    else:
        draw_ratio(axes, name, points)
    axes.spines[["top"]].set_visible(False)
    axes.grid(axis="y", color="0.9", lw=0.6)
    axes.set_axisbelow(True)


def figures(found: dict[str, list[Point]], folder: Path) -> None:
    """One figure per quantity, and one with all of them."""
    plt.rcParams.update({"font.size": 9, "axes.titlesize": 10, "svg.hashsalt": "growth", "svg.fonttype": "path"})
    for name, points in found.items():
        figure, axes = plt.subplots(figsize=(4.2, 3.0), layout="constrained")
        draw(axes, name, points)
        figure.savefig(folder / f"growth-{name}.svg", metadata={"Date": None})
        plt.close(figure)
    figure, grid = plt.subplots(2, 2, figsize=(8.4, 5.8), layout="constrained")
    for axes, (name, points) in zip(grid.flat, found.items(), strict=False):
        draw(axes, name, points)
    for axes in grid.flat[len(found) :]:
        axes.set_axis_off()
    figure.savefig(folder / "growth.svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default=",".join([*SHAPES, "steps"]))
    parser.add_argument("--seconds", type=float, default=8.0, help="per point of layers, edges and heads")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    kept = options.folder / "growth.json"
    found = json.loads(kept.read_text()) if kept.exists() else {}
    for name in filter(None, options.only.split(",")):
        found[name] = measure(name, options.seconds)
        kept.write_text(json.dumps(found, indent=1))
    figures({name: found[name] for name in [*SHAPES, "steps"] if name in found}, options.folder)


if __name__ == "__main__":
    main()
