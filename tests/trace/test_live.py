"""Another process reads while the training writes, and after it was killed."""

from __future__ import annotations

import os
import random
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gnnstab.errors import TraceError
from gnnstab.trace import Trace
from killed import WRITE, check_consistent


def written(process: Any, at_least: int) -> int:
    step = -1
    while step < at_least:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        step = int(line)
    return step


@pytest.mark.parametrize("budget", [64 * 2**20, 512 * 1024])
def test_snapshots_of_a_live_trace_are_consistent_and_grow(path: Path, child: Any, budget: int) -> None:
    process = child(WRITE, path, budget)
    lasts = []
    for at_least in (0, 200, 800, 1600):
        flushed = written(process, at_least)
        with Trace.open(path) as trace:
            last = check_consistent(trace)
            assert not trace.complete
            flushed = max(flushed, written(process, flushed + 50))
            assert check_consistent(trace) == last, "the snapshot moved"
        lasts.append(last)
    assert lasts == sorted(set(lasts))


def test_many_readers_at_once(path: Path, child: Any) -> None:
    """Twenty of them hold their snapshots together, while the writer goes on, and look again and again."""
    process = child(WRITE, path, 512 * 1024)
    written(process, 50)
    together = threading.Barrier(20)

    def read() -> list[int]:
        lasts = []
        for _ in range(2):
            with Trace.open(path) as trace:
                together.wait(60)
                lasts.append(check_consistent(trace))
        return lasts

    with ThreadPoolExecutor(20) as pool:
        readers = [pool.submit(read) for _ in range(20)]
        written(process, 400)
        for reader in readers:
            assert reader.result() == sorted(reader.result())


@pytest.mark.parametrize("seed", range(4))
def test_a_killed_writer_leaves_a_trace_that_opens(path: Path, child: Any, seed: int) -> None:
    process = child(WRITE, path, 512 * 1024)
    flushed = written(process, 300 * (seed + 1))
    time.sleep(random.Random(seed).random() * 0.1)
    process.kill()
    process.wait()
    flushed = max([flushed, *(int(line) for line in process.stdout.read().split("\n")[:-1])])
    with Trace.open(path) as trace:
        assert check_consistent(trace) >= flushed
        assert {0, flushed} <= {event.step for event in trace.events()}
        assert not trace.complete
    # The next run takes over: the lock ended with the process, and the killed run is kept.
    from gnnstab.trace import TraceWriter

    TraceWriter(path).close()
    with Trace.open(path.with_name("run.1.gnnstab")) as trace:
        assert check_consistent(trace) >= flushed


def test_a_killed_trace_is_read_from_a_read_only_folder(
    path: Path, child: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may write everywhere, so the two answers of a read-only folder are put in here."""
    process = child(WRITE, path, 64 * 2**20)
    written(process, 200)
    process.kill()
    process.wait()
    from gnnstab.trace import _opening as opening

    original = opening._connect

    def connect(path: str, mode: str) -> sqlite3.Connection:
        if "immutable" not in mode:
            raise sqlite3.OperationalError("unable to open database file")
        return original(path, mode)

    monkeypatch.setattr(opening, "_connect", connect)
    with pytest.raises(TraceError, match="cannot be read as a trace"):
        Trace.open(path)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    # No row of so young a trace has reached the main file, but its tables are there from the start.
    with Trace.open(path) as trace:
        assert trace.last_step is None
        assert "the rows of its last flushes" in trace.notes[0]
    sqlite3.connect(path).execute("PRAGMA wal_checkpoint(TRUNCATE)").connection.close()
    Path(f"{path}-wal").write_bytes(b"")
    with Trace.open(path) as trace:
        assert trace.last_step is not None
        assert "the rows of its last flushes" in trace.notes[0]
