"""Kill a recording process at random moments and open what it leaves behind.

    python tests/benchmarks/trace_kills.py [--kills 200] [--log FILE]

Every trace must open, be consistent, and hold everything up to the last flush that the process reported. The budget is
small, so that kills also fall into the thinning of old steps. Every run is a slice that adds one line to the log, and
draws other moments than the slices before it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from gnnstab.trace import Trace
from killed import WRITE, check_consistent

BUDGET = 512 * 1024


def kill_one(folder: str, rng: random.Random) -> tuple[int, bool]:
    """Start, kill, open and check; returns the steps that were flushed and whether old ones had been thinned."""
    path = os.path.join(folder, "run.gnnstab")
    process = subprocess.Popen([sys.executable, "-c", WRITE, path, str(BUDGET)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(rng.random() ** 2 * 4.0)
    process.kill()
    told = [int(line) for line in ("0\n" + process.stdout.read()).split("\n")[:-1]]
    process.wait()
    with Trace.open(path) as trace:
        assert check_consistent(trace) >= max(told)
        assert {event.step for event in trace.events()} >= set(told)
        assert trace.steps()[-1].step >= max(told)
        return max(told), max(int(rows["span"].max()) for rows in trace.sites().values()) > 1


def main() -> None:
    """Kill as often as asked, print what was seen and add it to the log."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--log", type=Path, default=Path(__file__).with_name("kills-log.jsonl"))
    options = parser.parse_args()
    slices = [json.loads(line) for line in options.log.read_text().splitlines()] if options.log.exists() else []
    rng = random.Random(len(slices))
    begin, steps, thinned = time.perf_counter(), 0, 0
    for _ in range(options.kills):
        with tempfile.TemporaryDirectory() as folder:
            flushed, was_thinned = kill_one(folder, rng)
        steps, thinned = steps + flushed, thinned + was_thinned
    slices.append({
        "date": time.strftime("%Y-%m-%d", time.gmtime()), "minutes": round((time.perf_counter() - begin) / 60, 1),
        "kills": options.kills, "flushed_steps": steps, "thinned": thinned,
    })  # fmt: skip
    options.log.write_text("".join(json.dumps(each) + "\n" for each in slices))
    kills, steps, thinned = (sum(each[key] for each in slices) for key in ("kills", "flushed_steps", "thinned"))
    print(f"the log: {kills} kills in {len(slices)} slices, every trace opened and held its last flush")
    print(f"{steps} flushed steps in all; old steps had been thinned in {thinned} of the traces")


if __name__ == "__main__":
    main()
