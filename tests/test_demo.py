"""The demonstration works from beginning to end."""

from pathlib import Path

import pytest
from gnnstab.cli.group import run

from gnnstab import demo


@pytest.mark.slow
def test_the_demonstration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["demo", "--folder", str(tmp_path / "here")]) == 0
    shown = capsys.readouterr()
    assert "non-finite-value" in shown.err
    assert "UNSTABLE" in shown.out
    assert "confirmed     mean-aggregation-root" in shown.out
    assert (tmp_path / "here" / "report.html").stat().st_size > 10_000


def test_its_graphs_are_the_same_each_time() -> None:
    first, second = demo.swarm_graphs(3), demo.swarm_graphs(3)
    assert first.x.equal(second.x)
    assert first.edge_index.equal(second.edge_index)
    assert first.num_nodes == demo.GRAPHS * (2 * demo.AGENTS + 3)
