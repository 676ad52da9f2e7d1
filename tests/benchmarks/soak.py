"""Train a tiny network for a very long time under a monitor and watch what grows.

    python tests/benchmarks/soak.py [--steps 100000] [--folder DIR]

Every step is recorded, the trace lies on the disk. Memory, open files, threads and the time per step are compared
between the first and the last third of the run; the exit code is 1 when one of them has grown.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch_geometric.nn import TransformerConv

import gnnstab
from gnnstab.diagnosis import diagnose_trace
from gnnstab.trace import Trace

WARM_UP = 0.05
"""Share of the steps that is left out: caches fill, the allocator finds its size, the trace reaches its budget."""

MEMORY_SLACK = 8 * 2**20
"""Bytes by which the resident memory of the last third may exceed that of the first."""

TIME_SLACK = 1.25
"""Factor on the median time of a step, for a machine that others use as well."""


class Net(nn.Module):
    """Two small attention layers and a read-out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = TransformerConv(4, 4), TransformerConv(4, 4, beta=True)
        self.out = nn.Linear(4, 1)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.out(self.second(torch.relu(self.first(x, edge_index)), edge_index))
        return out


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def train(steps: int, path: Path) -> list[dict[str, float]]:
    """Run, and note memory, open files, threads and the median time of a step a hundred times on the way."""
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    every = torch.arange(5)
    edge_index = torch.cartesian_prod(every, every).t().contiguous()
    window = max(steps // 100, 1)
    notes, times = [], []
    with gnnstab.Monitor(model, optimizer=optimizer, trace=path) as monitor:
        for step in range(steps):
            begun = time.perf_counter()
            x = torch.randn(5, 4)
            optimizer.zero_grad()
            loss = (model(x, edge_index) - x[:, :1]).square().mean()
            loss.backward()
            optimizer.step()
            monitor.loss(loss)
            times.append(time.perf_counter() - begun)
            if step % 1000 == 500:
                with torch.no_grad():
                    model.eval()(x, edge_index)
                model.train()
            if len(times) == window:
                notes.append(look(step, times, path))
                times = []
    return notes


def look(step: int, times: list[float], path: Path) -> dict[str, float]:
    gc.collect()
    return {
        "step": step,
        "milliseconds": 1000 * statistics.median(times),
        "resident": resident(),
        "files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "objects": len(gc.get_objects()),
        "trace": sum(f.stat().st_size for f in path.parent.iterdir()),
    }


def thirds(notes: list[dict[str, float]]) -> dict[str, list[float]]:
    """Per quantity its median in the three thirds after the warm-up; of memory and files the maximum."""
    notes = notes[int(WARM_UP * len(notes)) :]
    parts = [notes[i * len(notes) // 3 : (i + 1) * len(notes) // 3] for i in range(3)]
    return {
        name: [(statistics.median if name == "milliseconds" else max)(note[name] for note in part) for part in parts]
        for name in notes[0]
        if name != "step"
    }


def grown(found: dict[str, list[float]]) -> list[str]:
    """What the last third has more of than the first."""
    limits = {
        "milliseconds": found["milliseconds"][0] * TIME_SLACK,
        "resident": found["resident"][0] + MEMORY_SLACK,
        "files": found["files"][0],
        "threads": found["threads"][0],
        "objects": found["objects"][0] * 1.01,
    }
    return [name for name, limit in limits.items() if found[name][2] > limit]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "run.gnnstab"
        begun = time.perf_counter()
        found = thirds(train(options.steps, path))
        ran = time.perf_counter() - begun
        begun = time.perf_counter()
        with Trace.open(path) as trace:
            last, complete = trace.last_step, trace.complete
            worst = [f.code for f in diagnose_trace(trace).findings if f.code.startswith("GS9")]
        read = time.perf_counter() - begun
    for name, values in found.items():
        scale = 2**20 if name in ("resident", "trace") else 1
        print(f"{name + (' (MiB)' if scale > 1 else ''):<16}" + "".join(f"{value / scale:>12.3f}" for value in values))
    print(
        f"{options.steps} steps in {ran:.0f} s; opened and diagnosed in {read:.1f} s; last step {last}, complete {complete}"
    )
    failures = grown(found) + [f"finding {code}" for code in worst]
    failures += [] if complete and last == options.steps - 1 else ["the trace is not whole"]
    print(json.dumps({"thirds": found, "seconds": ran, "failures": failures}))
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
