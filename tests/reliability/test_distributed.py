"""Two processes of one training: a trace for each, merged when it is read; the death of one costs only its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gnnstab.cli.group import run as command

from gnnstab.diagnosis import diagnose
from gnnstab.trace import Trace

SCRIPT = Path(__file__).with_name("ddp_training.py")
BAD_STEP, DEATH = 5, 6

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="torch without gloo"
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the program has left; it ends badly, as its rank 1 does."""
    folder = tmp_path_factory.mktemp("ddp")
    ended = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", SCRIPT, folder],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode != 0 and "SIGKILL" in ended.stderr, ended.stderr[-3000:]
    return folder


def test_the_training_is_the_same_on_every_rank(folder: Path) -> None:
    for rank in (0, 1):
        count, same = (folder / f"rank{rank}").read_text().split()
        assert int(count) > 10 and same == "True"


@pytest.mark.parametrize("name", ["", "run", "run.gnnstab"], ids=["folder", "stem", "file that was asked for"])
def test_the_ranks_are_merged(folder: Path, name: str) -> None:
    with Trace.open(folder / "bad" / name) as trace:
        assert trace.ranks == (0, 1) and trace.complete
        assert [(row.step, row.rank) for row in trace.steps()][:4] == [(0, 0), (0, 1), (1, 0), (1, 1)]
        (rows,) = trace.sites(layer="first", site="input", mode="train").values()
        assert set(rows["rank"]) == {0, 1}
        first, second = (rows[rows["rank"] == rank] for rank in (0, 1))
        assert first["maximum"][0] != second["maximum"][0], "each rank saw its own data"


def test_the_finding_names_the_rank(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The NaN is in the data of rank 1; the average of the gradients carries it to rank 0 in the same step."""
    (finding,) = [f for f in diagnose(folder / "bad" / "run").findings if f.code == "GS502"]
    assert finding.step == BAD_STEP and finding.cause == "non-finite-data"
    assert "`x` holds NaN in row 2, column 0 and came in at `addmm`" in finding.message, "the operation first"
    assert f"first non-finite value at step {BAD_STEP} on rank 1: the model, stage input, node 2" in finding.message
    assert command(["diagnose", str(folder / "bad")]) == 1
    assert "on rank 1" in " ".join(capsys.readouterr().out.split())


def test_a_rank_that_dies_loses_nothing_of_the_others(folder: Path) -> None:
    with Trace.open(folder / "killed") as trace:
        assert trace.ranks == (0, 1) and not trace.complete
        steps = {rank: [row.step for row in trace.steps() if row.rank == rank] for rank in (0, 1)}
    assert steps[1] == list(range(DEATH)), "what the dead rank had flushed"
    assert steps[0][:DEATH] == list(range(DEATH))
    diagnosis = diagnose(folder / "killed" / "run")
    assert diagnosis.coverage.layers_observed == 2
    assert "GS903" in [f.code for f in diagnosis.findings]
