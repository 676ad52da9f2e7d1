"""Train a tiny network for a very long time under a monitor and watch what grows.

    python tests/benchmarks/soak.py [--steps 100000] [--folder DIR]

The light tier records every step, the full tier every 50th, and the trace lies on the disk. After a warm-up, memory, open
files, threads, objects and the time of a step, as a ratio to an unmonitored twin that trains a little in between, are
compared between the first and the last third of the run; the exit code is 1 when one of them has grown.
"""

from __future__ import annotations

import argparse
import ctypes
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
from gnnstab.evaluation import diagnose_trace
from gnnstab.trace import Trace

WARM_UP = 0.25
"""Share of the steps that is left out: caches fill, the allocator finds its size, the trace comes near its budget."""

BYTES_PER_STEP = 32
"""Growth of the memory that is allowed: less than the smallest Python object that could be lost in a step."""

TIME_SLACK = 1.25
"""Factor on how much longer a monitored step takes than an unmonitored one."""

TWIN_STEPS = 40
"""Unmonitored steps after every hundredth of the run."""


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


class _Allocated(ctypes.Structure):
    """``struct mallinfo2`` of glibc."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def heap() -> int:
    """Bytes that C code of this process holds, SQLite's among them; what the allocator keeps for later does not count."""
    ask = ctypes.CDLL(None).mallinfo2
    ask.restype = _Allocated
    return int(ask().uordblks)


class Training:
    """The network, its optimizer and its data."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = Net()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        every = torch.arange(5)
        self.edge_index = torch.cartesian_prod(every, every).t().contiguous()

    def step(self, number: int, monitor: gnnstab.Monitor | None = None) -> float:
        """One step; returns its seconds."""
        begun = time.perf_counter()
        x = torch.randn(5, 4)
        self.optimizer.zero_grad()
        loss = (self.model(x, self.edge_index) - x[:, :1]).square().mean()
        loss.backward()
        self.optimizer.step()
        if monitor is not None:
            monitor.loss(loss)
        taken = time.perf_counter() - begun
        if number % 1000 == 500:
            with torch.no_grad():
                self.model.eval()(x, self.edge_index)
            self.model.train()
        return taken


def train(steps: int, path: Path) -> list[dict[str, float]]:
    """Run, and look at everything a hundred times on the way."""
    watched, twin = Training(), Training()
    window = max(steps // 100, 1)
    notes, times = [], []
    with gnnstab.Monitor(watched.model, optimizer=watched.optimizer, trace=path, schedule=50) as monitor:
        for step in range(steps):
            times.append(watched.step(step, monitor))
            if len(times) == window:
                alone = statistics.median([twin.step(number) for number in range(TWIN_STEPS)])
                notes.append(look(step, statistics.median(times), alone, path))
                times = []
    return notes


def look(step: int, watched: float, alone: float, path: Path) -> dict[str, float]:
    gc.collect()
    return {
        "step": step,
        "milliseconds": 1000 * watched,
        "over unmonitored": watched / alone,
        "resident": resident(),
        "heap": heap(),
        "files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "objects": len(gc.get_objects()),
        "trace": sum(f.stat().st_size for f in path.parent.iterdir()),
    }


def thirds(notes: list[dict[str, float]]) -> dict[str, list[float]]:
    """Per quantity its median in the three thirds after the warm-up; of files and threads the maximum."""
    notes = notes[int(WARM_UP * len(notes)) :]
    parts = [notes[i * len(notes) // 3 : (i + 1) * len(notes) // 3] for i in range(3)]
    return {
        name: [(max if name in ("files", "threads") else statistics.median)([n[name] for n in part]) for part in parts]
        for name in notes[0]
    }


def grown(found: dict[str, list[float]]) -> list[str]:
    """What the last third has more of than the first."""
    allowed = BYTES_PER_STEP * (found["step"][2] - found["step"][0])
    limits = {
        "over unmonitored": found["over unmonitored"][0] * TIME_SLACK,
        "resident": found["resident"][0] + allowed,
        "heap": found["heap"][0] + allowed,
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
        scale = 2**20 if name in ("resident", "heap", "trace") else 1
        print(f"{name + (' (MiB)' if scale > 1 else ''):<18}" + "".join(f"{value / scale:>12.3f}" for value in values))
    print(
        f"{options.steps} steps in {ran:.0f} s; opened and diagnosed in {read:.1f} s; last step {last}, complete {complete}"
    )
    failures = grown(found) + [f"finding {code}" for code in worst]
    failures += [] if complete and last == options.steps - 1 else ["the trace is not whole"]
    print(json.dumps({"thirds": found, "seconds": ran, "failures": failures}))
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
