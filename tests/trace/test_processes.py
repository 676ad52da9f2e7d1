"""Writers in several processes: one at a time, forked, ended, forgotten, killed."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gnnstab.errors import TraceError
from gnnstab.records import StepRow
from gnnstab.trace import Trace, TraceWriter
from gnnstab.trace import _opening as opening

HOLD = """
import sys
from gnnstab.trace import TraceWriter
with TraceWriter(sys.argv[1]) as writer:
    print("ready", flush=True)
    sys.stdin.readline()
"""


def test_two_writers_in_two_processes(path: Path, child: Any) -> None:
    other = child(HOLD, path)
    assert other.stdout.readline() == "ready\n"
    with pytest.raises(TraceError, match=rf"process {other.pid} is writing it; give this run its own path"):
        TraceWriter(path)
    other.kill()
    other.wait()
    with TraceWriter(path) as writer:
        assert writer.failure is None
    assert path.with_name("run.1.gnnstab").exists()


FORK = """
import os, sys, time
import numpy as np
from gnnstab.records import Event, SeriesKey, StepRow
from gnnstab.trace import Trace, TraceWriter

path = sys.argv[1] if sys.argv[1] != "memory" else None
writer = TraceWriter(path, flush_seconds=0.02)
key = SeriesKey("a", "train", 0, "score")
writer.sites(0, [writer.series(key)], np.ones((1, 5)))
writer.flush()
child = os.fork()
if child == 0:
    for step in range(1000, 1100):
        writer.sites(step, [writer.series(key)], np.ones((1, 5)))
        writer.step(StepRow(step, 0.0, 1.0, None, None, None))
    writer.event(Event(1000, "note"))
    writer.measures([])
    writer.flush()
    assert "forked" in writer.failure, writer.failure
    writer.close()
    time.sleep(0.2)
    sys.exit(7)
for step in range(1, 50):
    writer.sites(step, [writer.series(key)], np.ones((1, 5)))
    time.sleep(0.005)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
writer.sites(50, [1], np.ones((1, 5)))
writer.flush()
assert writer.failure is None, writer.failure
with writer.read() as trace:
    print(len(trace.sites()[key]), trace.last_step, len(trace.events()))
writer.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("where", ["file", "memory"])
def test_a_forked_child_writes_nothing(path: Path, child: Any, where: str) -> None:
    # Python 3.12 warns of every fork beside threads; this test forks on purpose.
    process = child(
        "import warnings; warnings.simplefilter('ignore', DeprecationWarning)\n" + FORK,
        path if where == "file" else "memory",
    )
    out, err = process.communicate(timeout=60)
    assert (out.split(), err) == (["51", "50", "0"], "")


LEFT_OPEN = """
import sys
from gnnstab.records import StepRow
from gnnstab.trace import TraceWriter
writer = TraceWriter(sys.argv[1], flush_seconds=60)
for step in range(10):
    writer.step(StepRow(step, 0.0, 1.0, None, None, None))
if sys.argv[2] == "raise":
    raise KeyboardInterrupt
"""


@pytest.mark.parametrize("way", ["end", "raise"])
def test_a_writer_left_open_is_closed_at_exit(path: Path, child: Any, way: str) -> None:
    child(LEFT_OPEN, path, way).communicate(timeout=60)
    with Trace.open(path) as trace:
        assert len(trace.steps()) == 10
        assert trace.complete


def test_a_writer_that_is_forgotten_is_closed(path: Path, record: Callable[..., None]) -> None:
    writer = TraceWriter(path, flush_seconds=60)
    record(writer, range(5))
    del writer
    gc.collect()
    with Trace.open(path) as trace:
        assert len(trace.steps()) == 5
    assert not any(thread.name == "gnnstab-trace" for thread in threading.enumerate())


HALF_WRITTEN = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA journal_mode = DELETE")
connection.execute("PRAGMA cache_size = 1")
connection.execute("BEGIN IMMEDIATE")
connection.execute("UPDATE step SET loss = -1")
connection.executemany("INSERT INTO meta VALUES (?, ?)", [(f"half {i}", "x" * 500) for i in range(2000)])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_writer_that_was_killed_within_a_transaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.gnnstab"
    with TraceWriter(path) as writer:
        for step in range(3):
            writer.step(StepRow(step, 0.0, 1.0, None, None, None, False))
    subprocess.run([sys.executable, "-c", HALF_WRITTEN, str(path)], check=False, timeout=60)
    files = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert files["run.gnnstab-journal"]
    with Trace.open(path) as trace:
        assert [row.loss for row in trace.steps()] == [1.0] * 3
        assert not any(key.startswith("half") for key in trace.meta)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == files
    monkeypatch.setattr(opening, "LARGEST_FILE", 10)
    with pytest.raises(TraceError, match="larger than any trace of gnnstab"):
        Trace.open(path)
