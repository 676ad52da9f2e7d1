"""A trace is checked in a process that never imports torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gnnstab.records import LayerFacts, Measure, SeriesKey, StepRow
from gnnstab.trace import TraceWriter

PROGRAM = """
import sys
sys.modules["torch"] = None  # an import of it raises
before = set(sys.modules)
from gnnstab.cli.group import run
code = run(["check", "--isolated", sys.argv[1]])
assert not {"torch_geometric", "matplotlib", "importlib.metadata", "statistics"} & (set(sys.modules) - before)
sys.exit(code)
"""


def check(path: Path, entropy: float) -> subprocess.CompletedProcess:
    with TraceWriter(path) as writer:
        writer.layer(
            LayerFacts("gnn1", "TransformerConv", 0, True, (16, 16), 16, 1, False, 0.0, options={"beta": False})
        )
        score = writer.series(SeriesKey("gnn1", "train", 0, "score"))
        for step in range(20):
            writer.sites(step, [score], [(-1.0, 2.0, 1.0, 100, 0)])
            writer.step(StepRow(step, 0.1 * step, 1.0, 1e-3, None, 0.5))
        writer.measures(
            Measure(10, "gnn1", "train", 0, name, -1, value)
            for name, value in (
                ("attention.entropy", entropy),
                ("attention.one_hot_share", 1 - entropy),
                ("attention.entropy_unit_input", entropy),
                ("attention.one_hot_share_unit_input", 1 - entropy),
                ("degree.median", 9.0),
                ("input.rms", 1.0),
            )
        )
    return subprocess.run([sys.executable, "-c", PROGRAM, str(path)], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(("entropy", "code", "told"), [(0.9, 0, ["STABLE"]), (0.05, 1, ["GS301", "gnn1"])])
def test_a_calm_trace_passes_and_a_saturated_one_fails(
    entropy: float, code: int, told: list[str], tmp_path: Path
) -> None:
    ran = check(tmp_path / "run.gnnstab", entropy)
    assert ran.returncode == code, ran.stdout + ran.stderr
    assert all(words in ran.stdout for words in told)
    assert ran.stdout.startswith("STABLE" if code == 0 else "UNSTABLE")
