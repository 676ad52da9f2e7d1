"""What the monitor costs in instructions, counted by callgrind: they are the same however busy the machine is.

    python tests/benchmarks/counted.py [--steps 96] [--only light] [--size small] [--keep FOLDER]

A case is a variant of ``overhead.py``, counted after so many warm steps. Its steps and as many unmonitored ones run in one process,
one after the other; all threads count, and what was recorded is written to disk once, at the end of the steps. Needs
valgrind, and says so where it is absent. With ``--keep``, ``callgrind_annotate FOLDER/out.N`` shows the functions behind part N.

Goals for the small graph: 1.10 for the light tier, 1.03 for a step that is left out, 1.15 for the first 100 steps.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from overhead import SIZES, Runner

from gnnstab.trace import TraceWriter


class Case(NamedTuple):
    """Steps whose instructions are counted."""

    variant: str
    warm: int
    """Steps before them; an update is tried on copies in steps 100 and 200, and neither is among those that are counted."""

    steps: int | None
    """None for as many as asked for."""


CASES = {
    "light tier": Case("light, every step", 102, None),
    "left out": Case("left out, every step", 102, None),
    "first 100": Case("default schedule", 0, 100),
}
SELDOM = 1e9
"""Seconds between two flushes: valgrind is slow, and a flush in every second would be one every other step."""


def main() -> None:
    """Count in a process under valgrind and print one line per case."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=96)
    parser.add_argument("--only", default="", help=f"parts of names of cases, comma-separated: {', '.join(CASES)}")
    parser.add_argument("--size", default="small", choices=SIZES)
    parser.add_argument("--keep", type=Path, help="folder for the profiles")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    chosen = {name: c for name, c in CASES.items() if any(part in name for part in options.only.split(","))}
    if options.inside:
        for case in chosen.values():
            _run(case, options.size, options.steps)
        return
    if not shutil.which("valgrind") or not torch._C._valgrind_supported_platform():
        print("nothing was counted: valgrind is not installed, or this build of torch does not know it")
        return
    with tempfile.TemporaryDirectory() as folder:
        options.keep = options.keep or Path(folder)
        options.keep.mkdir(exist_ok=True)
        counts = _count(options.keep.resolve())
    print(f"torch {torch.__version__}, {options.size}, millions of instructions per step")
    for (name, case), plain, own in zip(chosen.items(), counts[1::4], counts[3::4], strict=True):
        steps = 1e6 * (case.steps or options.steps)
        print(f"  {name:<12}{plain / steps:8.3f} unmonitored{own / steps:8.3f} monitored  ratio {own / plain:.4f}")


def _count(folder: Path) -> list[int]:
    """Instructions of every part, as `_run` has marked them, of this command in a process of its own."""
    out = folder / "out"
    tool = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={out}"]
    command = [*tool, sys.executable, *sys.argv, "--inside"]
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if ended.returncode:
        sys.exit(ended.stderr)
    parts = sorted(folder.glob("out.*"), key=lambda path: int(path.suffix[1:]))
    return [int(re.findall(r"^totals: (\d+)", part.read_text(), re.MULTILINE)[0]) for part in parts]


def _run(case: Case, size: str, steps: int) -> None:
    """Warm and counted steps, each a part of its own, first without the monitor."""
    torch.set_num_threads(1)
    for variant in ("unmonitored", case.variant):
        writers: list[TraceWriter] = []

        def writer(path: str | None, *, writers: list[TraceWriter] = writers, **options: Any) -> TraceWriter:
            writers.append(TraceWriter(path, flush_seconds=SELDOM, **options))
            return writers[-1]

        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            stack.enter_context(mock.patch("gnnstab.monitor.monitor.TraceWriter", writer))
            runner = Runner(variant, SIZES[size], Path(folder), stack)
            _take(runner, case.warm, writers)
            _instrument("on")
            _mark()
            _take(runner, case.steps or steps, writers)
            _mark()
            _instrument("off")


def _take(runner: Runner, steps: int, writers: list[TraceWriter]) -> None:
    for _ in range(steps):
        runner.step()
    for writer in writers:
        writer.flush()


def _instrument(how: str) -> None:
    """Callgrind begins, or ceases, to count; what is not counted runs ten times as fast."""
    subprocess.run(["callgrind_control", f"--instr={how}", str(os.getpid())], capture_output=True, check=True)


def _mark() -> None:
    """End a part of the count, on all threads, and begin the next."""
    torch._C._valgrind_toggle_and_dump_stats()
    torch._C._valgrind_toggle()


if __name__ == "__main__":
    main()
