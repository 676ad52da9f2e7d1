"""The demonstration works from beginning to end."""

from pathlib import Path

import pytest
from gnnstab.cli.group import run

from gnnstab import demo
from test_random_state import states


@pytest.mark.slow
def test_the_demonstration(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    before = states()
    assert run(["demo", "--folder", str(tmp_path / "here"), "--open"]) == 0
    assert states() == before
    assert opened == [(tmp_path / "here" / "demo.html").resolve().as_uri()]
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0].startswith("UNSTABLE")
    assert len(lines) <= 15
    assert not [line for line in lines if len(line) > 80 and str(tmp_path) not in line]
    assert any(line.startswith("confirmed mean-aggregation-root") for line in lines)
    assert shown.out.count("mean-aggregation-root") == 1, "verdicts are printed once"
    assert "self.lin_root" in shown.out
    assert "GS501" in shown.out
    assert "first non-finite value" in shown.out
    assert lines[-1].startswith("2 of ")
    assert len(shown.err.splitlines()) <= 3
    assert (tmp_path / "here" / "demo.html").stat().st_size > 10_000


@pytest.mark.parametrize(("display", "terminal"), [("", True), (":0", False), (":0", True)])
def test_the_page_opens_by_itself_at_a_desktop_alone(
    monkeypatch: pytest.MonkeyPatch, display: str, terminal: bool
) -> None:
    from gnnstab.cli.demo import _has_screen

    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal, raising=False)
    assert _has_screen() is bool(display and terminal)


def test_its_graphs_are_the_same_each_time() -> None:
    first, second = demo.swarm_graphs(3), demo.swarm_graphs(3)
    assert first.x.equal(second.x)
    assert first.edge_index.equal(second.edge_index)
    assert first.num_nodes == demo.GRAPHS * (2 * demo.AGENTS + 3)
