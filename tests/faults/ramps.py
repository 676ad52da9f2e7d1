"""Lead time on rates that rise: the programs of `rates`, whose learning rate ramps up, warms up or stays, under the monitor.

    PYTHONPATH=tests python tests/faults/ramps.py SEED COUNT OUT

These runs have the same author as the rules that are measured on them.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch

import gnnstab
from faults.lead import Row, row_of, table
from faults.rates import UNSEEN, Program, build, loss, programs

STEPS = 250
START = 60
"""First step of a ramp."""

SCHEDULES: dict[str, Callable[[int], float]] = {
    "constant": lambda _: 1.0,
    "warm-up over 50 steps": lambda step: min(1.0, (step + 1) / 50),
    "warm-up over 200 steps": lambda step: min(1.0, (step + 1) / 200),
    "one cycle": lambda step: 0.04 + 0.48 * (1 - math.cos(2 * math.pi * min(1.0, (step + 1) / STEPS))),
    "ramp of 3 % a step": lambda step: 1.03 ** max(0, step - START),
    "ramp of 6 % a step": lambda step: 1.06 ** max(0, step - START),
}
"""Step → factor of the program's usual rate."""


def row(program: Program, kind: str) -> Row:
    """Train one program under one schedule."""
    model, optimizer, batches = build(program)
    told: list[gnnstab.Finding] = []
    losses: list[float] = []
    broken = None
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding=told.append) as monitor:
        for step in range(STEPS):
            batch = batches[step % (len(batches) - UNSEEN)]
            for group in optimizer.param_groups:
                group["lr"] = program.lr * SCHEDULES[kind](step)
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=program.dtype) if program.dtype else nullcontext():
                value = loss(model(batch.x, batch.edge_index), batch)
            value.backward()
            losses.append(float(value.detach()))
            finite = all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
            optimizer.step()
            monitor.loss(value)
            if not (math.isfinite(losses[-1]) and finite):
                broken = step
                break
    return {**row_of(kind, losses, broken, told), "optimizer": program.optimizer}


def main(seed: int, count: int, out: str) -> None:
    """Write one JSON line per run, and print the table."""
    torch.set_num_threads(1)
    rows = []
    for program in programs(seed, count):
        for kind in SCHEDULES:
            rows.append(row(program, kind))
            with Path(out).open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(rows[-1]) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
