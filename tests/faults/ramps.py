"""Lead time on rates that rise: the programs of `rates`, whose learning rate ramps up, warms up or stays, under the monitor.

    PYTHONPATH=tests python tests/faults/ramps.py SEED COUNT OUT

These runs have the same author as the rules that are measured on them.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

import gnnstab
from faults.lead import _diverged as diverged
from faults.rates import UNSEEN, Program, build, loss, programs

Row = dict[str, Any]
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
    warned = [finding for finding in told if finding.severity != "info" and finding.step is not None]
    return {
        "kind": kind,
        "optimizer": program.optimizer,
        "blew_up": diverged(losses) if broken is None else broken,
        "warned": min((finding.step for finding in warned if finding.step is not None), default=None),
        "told": sorted({f"{finding.code} {finding.signal}" for finding in warned}),
    }


def table(rows: Sequence[Row]) -> str:
    """One line per schedule, as Markdown."""
    lines = ["| rate | runs | blew up | warned before | five steps before | median lead | warned without a blow-up |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    for kind in dict.fromkeys(one["kind"] for one in rows):
        own = [one for one in rows if one["kind"] == kind]
        bad = [one for one in own if one["blew_up"] is not None]
        leads = sorted(one["blew_up"] - one["warned"] for one in bad if one["warned"] is not None)
        quiet = sum(one["warned"] is not None for one in own if one["blew_up"] is None)
        middle = leads[len(leads) // 2] if leads else "–"
        early, five = sum(lead > 0 for lead in leads), sum(lead >= 5 for lead in leads)
        lines.append(f"| {kind} | {len(own)} | {len(bad)} | {early} | {five} | {middle} | {quiet} |")
    return "\n".join(lines)


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
