"""How long a gate on a trace takes: `gnnstab check run.gnnstab` on 10 000 steps against an empty program.

    python tests/benchmarks/check_startup.py [--steps 10000] [--rounds 7]

The two are run in turn, each in a process of its own; printed are the fastest of each, the difference and the ratio. Modules
are compiled once before, as an installed package is. The goal is less than 0.5 s more than `python -c "import click, rich"`,
and no torch in the process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from gnnstab.records import LayerFacts, Measure, SeriesKey, StepRow
from gnnstab.trace import TraceWriter

EMPTY = [sys.executable, "-c", "import click, rich"]
CHECK = [sys.executable, "-c", "from gnnstab.cli import main; main()", "check", "--isolated"]
WITHOUT_TORCH = (
    "import sys\nfrom gnnstab.cli.group import run\ncode = run(['check', '--isolated', sys.argv[1]])\n"
    "assert code in (0, 1), code\nassert not {'torch', 'torch_geometric', 'matplotlib'} & set(sys.modules)\n"
)
LAYERS, HEADS, SITES = 3, 3, ("input", "output", "score", "attention", "grad_output", "grad_input")


def write(path: Path, steps: int) -> None:
    """A run of three attention layers, light tier every step and full tier every 50th, as the monitor records it."""
    rng = np.random.default_rng(0)
    with TraceWriter(path) as writer:
        for i in range(LAYERS):
            writer.layer(
                LayerFacts(
                    f"gnn{i}",
                    "TransformerConv",
                    i,
                    True,
                    (16, 16),
                    16,
                    HEADS,
                    False,
                    dropout=0.0,
                    options={"beta": False, "root_weight": True},
                )
            )
        ids = [writer.series(SeriesKey(f"gnn{i}", "train", 0, site)) for i in range(LAYERS) for site in SITES]
        for step in range(steps):
            values = np.abs(rng.standard_normal((len(ids), 5)))
            values[:, 0] *= -1
            values[:, 3:] = (14_336, 0)
            writer.sites(step, ids, values)
            writer.step(StepRow(step, step * 0.01, 1.0 / (1 + step / 100), 1e-3, None, 0.5))
            if step % 50 == 0:
                writer.measures(
                    Measure(step, f"gnn{i}", "train", 0, name, head, value)
                    for i in range(LAYERS)
                    for head in range(-1, HEADS)
                    for name, value in (
                        ("attention.entropy", 0.8),
                        ("attention.one_hot_share", 0.02),
                        ("score.max_abs", 4.0),
                    )
                )
            if step % 2000 == 1999:
                writer.flush()


def compiled(folder: str) -> dict[str, str]:
    """The environment of a process that keeps its compiled modules in ``folder``."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPYCACHEPREFIX": folder}


def seconds(command: list[str], environment: dict[str, str]) -> float:
    """Wall-clock seconds of one process."""
    begin = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=False, env=environment)
    return time.perf_counter() - begin


def main() -> None:
    """Write the trace, run both programs in turn, print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.gnnstab"
        write(path, arguments.steps)
        subprocess.run([sys.executable, "-c", WITHOUT_TORCH, str(path)], stdout=subprocess.DEVNULL, check=True)
        check, environment = [*CHECK, str(path)], compiled(f"{folder}/compiled")
        for command in (EMPTY, check):
            seconds(command, environment)
        rounds = [(seconds(EMPTY, environment), seconds(check, environment)) for _ in range(arguments.rounds)]
    empty_s, check_s = (min(column) for column in zip(*rounds, strict=True))
    result = {
        "steps": arguments.steps,
        "empty_s": empty_s,
        "check_s": check_s,
        "more_s": check_s - empty_s,
        "ratio": check_s / empty_s,
    }
    print(json.dumps({key: round(value, 3) for key, value in result.items()}))


if __name__ == "__main__":
    main()
