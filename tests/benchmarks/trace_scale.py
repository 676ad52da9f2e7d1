"""What a long run costs in the trace store: size on disk, time and memory to read all of it and to judge it.

    python tests/benchmarks/trace_scale.py [--steps 1000000] [--series 20] [--budget-mib 64]

Writes as fast as it can, far faster than any training, waiting for the disk after every 2 000 steps. The goals for one
million steps of 20 series are: within the budget at every moment, opened and diagnosed in under 5 s, `gnnstab check`
under 300 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

from gnnstab.records import LayerFacts, SeriesKey, StepRow
from gnnstab.trace import TraceWriter

SITES = ("input", "output", "score", "attention", "grad_output")

PEAK = """
def peak_mb():
    # Not from getrusage: that begins with what the process had before it became another program.
    lines = open("/proc/self/status").read().splitlines()
    return round(int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024)
"""

READ = """
import json, sys, time
begin = time.perf_counter()
from gnnstab.trace import Trace
imported = time.perf_counter()
with Trace.open(sys.argv[1]) as trace:
    opened = time.perf_counter()
    sites = trace.sites()
    steps = trace.step_arrays()
    trace.layers(), trace.events(), trace.measures()
done = time.perf_counter()
cpu = time.process_time()
print(json.dumps({
    "import_s": round(imported - begin, 3), "open_s": round(opened - imported, 3), "read_s": round(done - opened, 3),
    "cpu_s_in_all": round(cpu, 3),
    "rows": sum(len(rows) for rows in sites.values()), "steps": len(steps),
    "spike_seen": bool(max(rows["maximum"].max() for rows in sites.values()) == 12345.0),
    "entries": int(sum(rows["span"].sum() for rows in sites.values())),
    "peak_mb": peak_mb(),
}))
"""


CHECK = """
import json, sys, time
begin = time.perf_counter()
from gnnstab.cli.group import run
imported = time.perf_counter()
code = run(["check", sys.argv[1], "--format", "json", "--output", "json=" + sys.argv[2]])
print(json.dumps({
    "seconds": round(time.perf_counter() - begin, 3), "of_which_import": round(imported - begin, 3),
    "cpu_s": round(time.process_time(), 3), "exit": code, "torch": "torch" in sys.modules,
    "peak_mb": peak_mb(),
}))
"""

DIAGNOSE = """
import json, sys, time
from gnnstab.evaluation import diagnose_trace
from gnnstab.trace import Trace
begin = time.perf_counter()
with Trace.open(sys.argv[1]) as trace:
    found = diagnose_trace(trace)
print(json.dumps({
    "open_and_diagnose_s": round(time.perf_counter() - begin, 3), "findings": [f.code for f in found.findings],
    "layers": found.coverage.layers_observed, "peak_mb": peak_mb(),
}))
"""


def on_disk(path: str) -> int:
    """Bytes of the trace and its journal."""
    return sum(os.path.getsize(name) for name in (path, f"{path}-wal") if os.path.exists(name))


def write(path: str, steps: int, series: int, budget: int) -> dict[str, Any]:
    """Write the run; one spike in the 777th step must be there at the end."""
    rng = np.random.default_rng(0)
    pool = rng.standard_normal((1000, series, 5)).astype(np.float32).astype(np.float64)
    pool[..., 2], pool[..., 3], pool[..., 4] = np.abs(pool[..., 2]), 14_336, 0
    posting, largest, begin = 0.0, 0, time.perf_counter()
    with TraceWriter(path, budget=budget) as writer:
        for i in range(-(-series // len(SITES))):
            writer.layer(LayerFacts(f"gnn{i}", "TransformerConv", i, True, heads=2))
        ids = [writer.series(SeriesKey(f"gnn{i // 5}", "train", 0, SITES[i % 5])) for i in range(series)]
        for step in range(steps):
            rows = pool[step % 1000]
            if step == 777:
                rows = rows.copy()
                rows[0, 1] = 12345.0
            before = time.perf_counter()
            writer.sites(step, ids, rows)
            writer.step(StepRow(step, step * 0.003, 1.0 / (step + 1), 1e-3, None, 1.0))
            posting += time.perf_counter() - before
            if step % 2000 == 1999:
                writer.flush()
                largest = max(largest, on_disk(path))
        failure = writer.failure
    return {
        "write_s": round(time.perf_counter() - begin, 1),
        "us_per_step_on_training_thread": round(posting / steps * 1e6, 2),
        "writer_cpu_us_per_step": round(time.process_time() / steps * 1e6, 1),
        "largest_mib": round(largest / 2**20, 1),
        "final_mib": round(on_disk(path) / 2**20, 1),
        "writer_peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "failure": failure,
    }


def apart(program: str, *arguments: str) -> dict[str, Any]:
    """What a program prints as its last line, run in a fresh process."""
    ended = subprocess.run(
        [sys.executable, "-c", PEAK + program, *arguments], check=True, stdout=subprocess.PIPE, text=True
    )
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


def check(path: str) -> dict[str, Any]:
    """Time and peak memory of ``gnnstab check``."""
    return apart(CHECK, path, f"{path}.json")


def main() -> None:
    """Write, then read, diagnose and check in fresh processes, and print everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--series", type=int, default=20)
    parser.add_argument("--budget-mib", type=float, default=64)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "run.gnnstab")
        print(json.dumps(write(path, options.steps, options.series, int(options.budget_mib * 2**20))), flush=True)
        for found in (apart(READ, path), apart(DIAGNOSE, path), check(path)):
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
