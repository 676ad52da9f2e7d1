"""How long the beginnings take, each beside its yardstick, in turn and in processes of their own; fastest of a few rounds.

    python tests/benchmarks/startup.py [--rounds 7]

Goals: `gnnstab --help` within 2.5 × of `import click`; the pytest plugin's import under 5 ms; `gnnstab diagnose` of a small
checkpoint within 1.3 × of importing torch and torch_geometric.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

CHECKPOINT = Path(__file__).resolve().parents[1] / "data" / "informarl" / "agents7_default" / "actor.pt"
GNNSTAB = "from gnnstab.cli import main; main()"
PAIRS = {
    "--help / import click": (["-c", "import click"], ["-c", GNNSTAB, "--help"]),
    "pytest + plugin / pytest": (["-c", "import pytest"], ["-c", "import pytest, gnnstab.pytest_plugin"]),
    "diagnose / import torch, torch_geometric": (
        ["-c", "import torch, torch_geometric"],
        ["-c", GNNSTAB, "diagnose", "--isolated", str(CHECKPOINT)],
    ),
}


def seconds(arguments: list[str]) -> float:
    """Wall time of one process."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def main() -> None:
    """Print one line per pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    for name, (yardstick, ours) in PAIRS.items():
        taken = [(seconds(yardstick), seconds(ours)) for _ in range(rounds)]
        least, most = min(a for a, _ in taken), min(b for _, b in taken)
        print(
            f"{name:<42} {least:.3f} s  {most:.3f} s  ratio {most / least:.2f}  difference {1000 * (most - least):.0f} ms"
        )


if __name__ == "__main__":
    main()
