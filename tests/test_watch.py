"""The live view: one pure frame per snapshot, and a real terminal that follows a trace being written."""

from __future__ import annotations

import io
import math
import os
import pty
import re
import select
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from gnnstab.cli import main
from rich.cells import cell_len
from rich.console import Console

import examples
import gallery
import runs
from gnnstab.records import Diagnosis, Series
from gnnstab.watch import Snapshot, frame
from gnnstab.watch._live import read
from gnnstab.watch._sparkline import sparkline


def snapshot(diagnosis: Diagnosis) -> Snapshot:
    return Snapshot(diagnosis, "runs/run.gnnstab", 400, 100.0, 401, 1e-3, 65536.0, complete=False)


def lines(shot: Snapshot, width: int = 80, height: int = 24, **options: object) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=width, height=height, color_system=None).print(frame(shot, width, height, **options))
    return stream.getvalue().split("\n")


@pytest.fixture(scope="module")
def saturating(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    path = tmp_path_factory.mktemp("run") / "run.gnnstab"
    runs.record(path, overflow_at=55)
    return read(path)


def test_a_recorded_run_in_80_by_24(saturating: Snapshot) -> None:
    shown = lines(saturating, hint="q quits")
    assert len(shown) == 24
    assert all(len(line) <= 80 for line in shown)
    text = "\n".join(shown)
    for words in ("UNSTABLE", "step 59", "ended", "lr 0.001", "max |s|", "entropy", "out RMS", "grad RMS"):
        assert words in text
    third = next(line for line in shown if "net.conv3" in line)
    assert third.startswith("■") and "inf" in third and "×" in third
    assert "GS502" in text
    assert "step 55 non-finite  net.conv3 score, made here" in text
    assert shown[-1] == "q quits"


def test_the_worst_layer_stands_first(saturating: Snapshot) -> None:
    shown = lines(saturating, 120, 40)
    rows = [line for line in shown if re.match(r".{0,2}\s*net\.conv\d ", line)]
    assert len(rows) == 3
    worst = [line[0] for line in rows]
    assert worst == sorted(worst, key="■▲● ".index)
    assert any("loss" in line for line in shown[:3]), "loss and rate stand above the layers"
    assert "lr 0.001" in shown[1]


def test_a_layer_whose_last_number_is_none_comes_before_calm_ones() -> None:
    series = tuple(
        Series("attention.entropy", f"net.conv{i}", None, np.array([0, 1]), np.array([0.9, end]))
        for i, end in enumerate((0.9, 0.2, math.nan))
    )
    shown = lines(snapshot(replace(gallery.run(), layers=(), signals=(), findings=(), events=(), series=series)), 100)
    order = [match[1] for line in shown if (match := re.search(r"(net\.conv\d) ", line))]
    assert order == ["net.conv2", "net.conv1", "net.conv0"]


def test_numbers_of_the_frame_are_those_of_the_trace(saturating: Snapshot) -> None:
    first = next(line for line in lines(saturating, 120) if "net.conv1" in line)
    assert [n for n in first.split() if re.fullmatch(r"[\d.e-]+", n)] == ["63", "0.124", "2.18", "2e-4"]


@pytest.mark.parametrize("size", [(40, 8), (60, 12), (80, 24), (132, 43), (300, 100)])
@pytest.mark.parametrize("name", ["run", "deep", "hostile", "nan", "clean", "all-nan"])
def test_no_frame_is_larger_than_its_terminal(name: str, size: tuple[int, int]) -> None:
    makers = {"run": gallery.run, "deep": lambda: gallery.deep(60, 90), "hostile": examples.hostile_names}
    makers |= {"nan": examples.nan_values, "clean": examples.clean, "all-nan": gallery.all_nan}
    shown = lines(snapshot(makers[name]()), *size, hint="q quits")
    assert len(shown) == size[1]
    assert all(cell_len(line) <= size[0] for line in shown)
    assert shown[-1] == "q quits"


def test_a_terminal_too_small_says_so() -> None:
    assert lines(snapshot(gallery.run()), 30, 5)[0] == "terminal too small: 30 × 5"


def test_layers_in_trouble_are_shown_before_calm_ones() -> None:
    shown = "\n".join(lines(snapshot(gallery.deep(60, 3)), 80, 24))
    for layer in ("0", "7", "14"):  # the three with findings
        assert re.search(rf"[■▲●] {layer}\.conv", shown) or f"blocks.{layer}.conv" in shown
    assert re.search(r"… \d+ more layers", shown)


def test_hostile_names_are_text() -> None:
    shown = "\n".join(lines(snapshot(examples.hostile_names()), 200, 60))
    assert "<img src=x onerror=alert(1)>" in shown and "[bold red]markup" in shown
    assert "\x1b" not in shown and "\u202e" not in shown


def test_ascii_terminals_get_ascii() -> None:
    shown = [line for line in lines(snapshot(gallery.run()), ascii_only=True) if "gnn" in line and "GS" not in line]
    assert not re.search("[▁▂▃▄▅▆▇█■▲●×]", "".join(shown))


@pytest.mark.parametrize(
    ("values", "width", "text"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7], 8, "▁▂▃▄▅▆▇█"),
        ([1, 10, 100, 1000], 4, "▁▃▆█"),  # logarithmic
        ([5, 5, 5], 3, "▁▁▁"),
        ([1, np.nan, 3], 3, "▁×█"),
        ([np.nan], 3, "  ×"),
        ([], 3, "   "),
        ([0, 9, 0, 0], 2, "█▁"),  # a peak survives
        ([1, 2], 0, ""),
    ],
)
def test_sparkline(values: list[float], width: int, text: str) -> None:
    assert sparkline(np.array(values, dtype=float), width) == text


def test_once_prints_one_frame(tmp_path: Path) -> None:
    path = tmp_path / "run.gnnstab"
    runs.record(path, 20)
    result = CliRunner().invoke(main, ["watch", str(path), "--once"])
    assert result.exit_code == 0, result.output
    assert result.output.count("max |s|") == 1
    assert "\x1b[?1049h" not in result.output  # no alternate screen


def test_a_missing_trace_is_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["watch", str(tmp_path / "none.gnnstab")])
    assert result.exit_code == 2
    assert "none.gnnstab" in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_follows_a_trace_that_is_being_written_and_quits_on_q(tmp_path: Path) -> None:
    path = tmp_path / "run.gnnstab"
    steps = runs.recording(path, 12)
    for _ in range(3):
        next(steps)
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24", "PYTHONUTF8": "1"}
    command = [sys.executable, "-c", "from gnnstab.cli import main; main()", "watch", str(path), "--refresh", "0.1"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, close_fds=True)
    os.close(theirs)
    try:
        assert "step 2" in seen(ours, "step 2")
        for _ in steps:
            pass
        assert "ended" in seen(ours, "ended")
        os.write(ours, b"q")
        seen(ours, "\x1b[?1049l")  # the screen of before comes back
        assert process.wait(20) == 0
    finally:
        process.kill()
        os.close(ours)


def seen(descriptor: int, wanted: str, seconds: float = 60.0) -> str:
    """What the terminal receives until ``wanted`` is part of it."""
    text, end = "", time.monotonic() + seconds
    while wanted not in text and time.monotonic() < end:
        if select.select([descriptor], [], [], 0.2)[0]:
            text += os.read(descriptor, 65536).decode("utf-8", "replace")
    assert wanted in text, text[-2000:]
    return text


def test_a_run_that_goes_on_is_not_reported_for_having_no_end(tmp_path: Path) -> None:
    path = tmp_path / "run.gnnstab"
    run = runs.recording(path, 5)
    for _ in range(3):
        next(run)
    snapshot = read(path)
    assert not snapshot.complete
    assert "GS903" not in [finding.code for finding in snapshot.diagnosis.findings]
    assert ("GS903", "fired") in [(rule.code, rule.status) for rule in snapshot.diagnosis.rules]
    run.close()
