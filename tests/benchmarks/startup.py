"""How long the beginnings take, each beside its yardstick, in turn and in processes of their own; fastest of a few rounds.

    python tests/benchmarks/startup.py [--rounds 7] [--steps 10000]

Goals: `gnnstab --help` within 2.5 × of `import click`; the pytest plugin's import under 5 ms; `gnnstab diagnose` of a small
checkpoint within 1.3 × of importing torch and torch_geometric; `gnnstab check` of a trace of 10 000 steps less than 0.5 s more
than `import click, rich`, and no torch in the process. Modules are compiled once before, as an installed package is.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from gnnstab.records import LayerFacts, Measure, SeriesKey, StepRow
from gnnstab.trace import TraceWriter

CHECKPOINT = Path(__file__).resolve().parents[1] / "data" / "informarl" / "agents7_default" / "actor.pt"
GNNSTAB = "from gnnstab.cli import main; main()"
PAIRS = {
    "--help / import click": (["-c", "import click"], ["-c", GNNSTAB, "--help"]),
    "pytest + plugin / pytest": (["-c", "import pytest"], ["-c", "import pytest, gnnstab.pytest_plugin"]),
    "diagnose / import torch, torch_geometric": (
        ["-c", "import torch, torch_geometric"],
        ["-c", GNNSTAB, "diagnose", "--isolated", str(CHECKPOINT)],
    ),
    "check / import click, rich": (["-c", "import click, rich"], ["-c", GNNSTAB, "check", "--isolated", "TRACE"]),
}
WITHOUT_TORCH = (
    "import sys\nfrom gnnstab.cli.group import run\ncode = run(['check', '--isolated', sys.argv[1]])\n"
    "assert code in (0, 1), code\nassert not {'torch', 'torch_geometric', 'matplotlib'} & set(sys.modules)\n"
)
LAYERS, HEADS, SITES = 3, 3, ("input", "output", "score", "attention", "grad_output", "grad_input")
FULL_TIER = {"attention.entropy": 0.8, "attention.one_hot_share": 0.02, "score.max_abs": 4.0}


def write(path: Path, steps: int) -> None:
    """A run of three attention layers, light tier every step and full tier every 50th, as the monitor records it."""
    rng = np.random.default_rng(0)
    with TraceWriter(path) as writer:
        for i in range(LAYERS):
            facts = {"concat": False, "dropout": 0.0, "beta": False, "root_weight": True}
            widths = {"in_channels": (16, 16), "out_channels": 16, "heads": HEADS}
            writer.layer(LayerFacts.of(f"gnn{i}", "TransformerConv", i, **widths, **facts))
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
                    for name, value in FULL_TIER.items()
                )
            if step % 2000 == 1999:
                writer.flush()


def seconds(arguments: list[str], environment: dict[str, str]) -> float:
    """Wall time of one process."""
    begin = time.perf_counter()
    ended = subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=False, env=environment)
    assert ended.returncode in (0, 1), arguments
    return time.perf_counter() - begin


def main() -> None:
    """Print one line per pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trace = f"{folder}/run.gnnstab"
        write(Path(trace), options.steps)
        subprocess.run([sys.executable, "-c", WITHOUT_TORCH, trace], stdout=subprocess.DEVNULL, check=True)
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment = {**kept, "PYTHONPYCACHEPREFIX": f"{folder}/compiled"}
        for name, pair in PAIRS.items():
            programs = [[trace if word == "TRACE" else word for word in program] for program in pair]
            rounds = [[seconds(program, environment) for program in programs] for _ in range(options.rounds + 1)]
            least, most = (min(column) for column in zip(*rounds[1:], strict=True))
            print(
                f"{name:<42} {least:.3f} s  {most:.3f} s  ratio {most / least:.2f}  "
                f"difference {1000 * (most - least):.0f} ms"
            )


if __name__ == "__main__":
    main()
