"""Whatever happens to the file, the training goes on and what was flushed stays."""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import gnnstab
from gnnstab.errors import TraceError
from gnnstab.records import Event, SeriesKey
from gnnstab.trace import Trace, TraceWriter
from gnnstab.trace._queue import Batch, RowEncoder
from gnnstab.trace._store import Store

Record = Callable[..., None]


def steps_in(path: Path) -> list[int]:
    with Trace.open(path) as trace:
        return [row.step for row in trace.steps()]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("missing/run.gnnstab", "the folder .* does not exist; create it first"),
        ("", "is a folder; give the path of a file"),
        ("notes.txt", "exists and is not a gnnstab trace; give another path or remove it"),
        ("other.db", "exists and is not a gnnstab trace"),
        ("pipe", "is not a regular file"),
    ],
)
def test_a_path_that_cannot_be_a_trace_is_refused(tmp_path: Path, place: str, message: str) -> None:
    (tmp_path / "notes.txt").write_text("precious " * 200)
    connection = sqlite3.connect(tmp_path / "other.db")
    connection.execute("CREATE TABLE precious (x)")
    connection.close()
    os.mkfifo(tmp_path / "pipe")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(TraceError, match=message) as caught:
        TraceWriter(tmp_path / place)
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == before
    assert (tmp_path / "notes.txt").read_text() == "precious " * 200


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder that nobody can write, not even root")
def test_a_folder_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(TraceError, match="cannot be written"):
        TraceWriter("/proc/self/run.gnnstab")


def test_an_empty_file_is_taken(path: Path, record: Record) -> None:
    path.touch()
    with TraceWriter(path) as writer:
        record(writer, range(3))
    assert steps_in(path) == [0, 1, 2]
    assert os.listdir(path.parent) == [path.name]


def test_the_trace_of_an_earlier_run_is_kept_under_a_number(path: Path, record: Record) -> None:
    for run in range(3):
        with TraceWriter(path) as writer:
            record(writer, range(run + 1))
    assert sorted(os.listdir(path.parent)) == ["run.1.gnnstab", "run.2.gnnstab", "run.gnnstab"]
    assert steps_in(path) == [0, 1, 2]
    assert steps_in(path.with_name("run.1.gnnstab")) == [0]
    assert steps_in(path.with_name("run.2.gnnstab")) == [0, 1]


def test_two_writers_in_one_process(path: Path, record: Record) -> None:
    with TraceWriter(path) as first:
        with pytest.raises(TraceError, match="another Monitor or TraceWriter of this process is writing it"):
            TraceWriter(path.parent / "." / path.name)
        record(first, range(3))
    with TraceWriter(path):
        pass
    assert steps_in(path.with_name("run.1.gnnstab")) == [0, 1, 2]


FILL_DISK = """
import resource, sys, time
import numpy as np
from gnnstab.records import Event, SeriesKey, StepRow
from gnnstab.trace import TraceWriter

told = []
writer = TraceWriter(sys.argv[1], flush_seconds=0.05, on_failure=told.append)
ids = [writer.series(SeriesKey(f"gnn{i}", "train", 0, "score")) for i in range(20)]
writer.flush()
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
for step in range(600):
    writer.sites(step, ids, np.ones((20, 5)))
    writer.step(StepRow(step, 0.0, 1.0, None, None, None))
    if step % 100 == 0:
        writer.event(Event(step, "note"))
        writer.flush()
writer.flush()
assert writer.failure is not None, "the limit was not felt"
assert len(told) == 1 and "cannot be written" in told[0] and "\\n" not in told[0], told
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
writer.flush()
writer.close()
with writer.read() as trace:
    print(len(trace.steps()), sum(len(rows) for rows in trace.sites().values()), len(trace.events()), trace.complete)
"""


def test_a_full_disk_is_told_once_and_everything_is_written_when_there_is_room_again(path: Path, child: Any) -> None:
    process = child(FILL_DISK, path)
    out, err = process.communicate(timeout=120)
    assert (out.split(), err) == (["600", "12000", "6", "True"], "")


def test_rows_that_can_never_be_written_are_dropped_oldest_first_and_counted(
    path: Path, monkeypatch: pytest.MonkeyPatch, record: Record
) -> None:
    monkeypatch.setattr("gnnstab.trace._worker.SITES_LIMIT", 100)
    monkeypatch.setattr("gnnstab.trace._worker.ROWS_LIMIT", 100)
    refuse = True
    original = Store.write

    def write(store: Store, batch: Batch) -> int:
        if refuse:
            raise sqlite3.OperationalError("database or disk is full")
        return original(store, batch)

    monkeypatch.setattr(Store, "write", write)
    with TraceWriter(path, flush_seconds=60) as writer:
        record(writer, range(450))
        writer.event(Event(3, "non-finite"))
        writer.flush()
        assert "disk is full" in (writer.failure or "")
        refuse = False
        writer.flush()
        with writer.read() as trace:
            assert [row.step for row in trace.steps()] == list(range(350, 450))
            assert trace.last_step == 449
            assert [event.step for event in trace.events()] == [3]
            # 350 steps with 3 statistics and 1 step row each.
            assert trace.meta["dropped.rows"] == str(350 * 4)
            assert set(trace.sites()) == {SeriesKey(f"gnn{i}", "train", 0, "score") for i in range(3)}


@pytest.mark.parametrize("also", [(), ("-wal",), ("-wal", "-shm", "-lock")])
def test_a_file_deleted_under_the_writer_begins_anew_and_says_so(
    path: Path, record: Record, also: tuple[str, ...]
) -> None:
    told: list[str] = []
    with TraceWriter(path, on_failure=told.append) as writer:
        record(writer, range(50))
        writer.event(Event(3, "note"))
        writer.flush()
        for suffix in ("", *also):
            os.unlink(f"{path}{suffix}")
        record(writer, range(50, 70))
        writer.flush()
        assert steps_in(path) == list(range(50, 70))
        record(writer, range(70, 80))
    assert len(told) == 1
    assert "was deleted; a new one begins as" in told[0]
    assert steps_in(path) == list(range(50, 80))
    assert os.listdir(path.parent) == [path.name]
    with Trace.open(path) as trace:
        # 50 steps with 3 statistics and 1 step row each.
        assert trace.meta["dropped.rows"] == str(50 * 4)
        assert trace.meta["failure"] == told[0]
        assert {"created", "journal"} <= set(trace.meta)
        assert len(trace.keys()) == 3
    diagnosis = gnnstab.diagnose(path)
    assert "200 rows" in next(f.message for f in diagnosis.findings if "rows" in f.message)


def test_a_trace_that_is_deleted_and_restored_is_two_traces(path: Path, record: Record) -> None:
    """The restored file holds the beginning alone; what comes later must not be looked for in it."""
    with TraceWriter(path) as writer:
        record(writer, range(50))
        writer.flush()
        kept = path.with_name("kept")
        sqlite3.connect(path).execute("VACUUM INTO ?", (str(kept),)).connection.close()
        for file in path.parent.glob("run.gnnstab*"):
            file.unlink()
        record(writer, range(50, 60))
        writer.flush()
        os.replace(kept, path)
        record(writer, range(60, 70))
        writer.flush()
        assert "was replaced by another file; a new one begins as" in (writer.failure or "")
    assert steps_in(path) == list(range(50))
    assert not any(finding.code == "GS902" for finding in gnnstab.diagnose(path).findings)
    with Trace.open(path.with_name("run.1.gnnstab")) as trace:
        assert [row.step for row in trace.steps()] == list(range(60, 70))
        assert int(trace.meta["dropped.rows"]) == 60 * 4


def test_a_folder_deleted_under_the_writer(tmp_path: Path, record: Record) -> None:
    folder = tmp_path / "runs"
    folder.mkdir()
    path = folder / "run.gnnstab"
    with TraceWriter(path) as writer:
        record(writer, range(10))
        writer.flush()
        for name in os.listdir(folder):
            os.unlink(folder / name)
        folder.rmdir()
        for start in range(10, 60, 10):
            record(writer, range(start, start + 10))
            writer.flush()
        assert writer.failure is not None
        with pytest.raises(TraceError, match="no such file"):
            writer.read()
        folder.mkdir()
        writer.flush()
        assert steps_in(path) == list(range(10, 60))
    assert steps_in(path) == list(range(10, 60))


def test_another_file_put_in_its_place_is_left_alone(path: Path, record: Record) -> None:
    with TraceWriter(path) as writer:
        record(writer, range(10))
        writer.flush()
        os.replace(path, path.with_name("moved.db"))
        path.write_text("somebody else's")
        record(writer, range(10, 20))
        writer.flush()
        assert "was replaced by another file; a new one begins as" in (writer.failure or "")
        with writer.read() as trace:
            assert trace.path == str(path.with_name("run.1.gnnstab"))
    assert path.read_text() == "somebody else's"
    assert steps_in(path.with_name("run.1.gnnstab")) == list(range(10, 20))


def test_a_file_damaged_under_the_writer_is_set_aside(
    path: Path, monkeypatch: pytest.MonkeyPatch, record: Record
) -> None:
    original = Store.write
    failures = [sqlite3.DatabaseError("database disk image is malformed")]

    def write(store: Store, batch: Batch) -> int:
        if failures and batch.steps and batch.steps[-1][0] >= 500:
            raise failures.pop()
        return original(store, batch)

    monkeypatch.setattr(Store, "write", write)
    with TraceWriter(path) as writer:
        record(writer, range(500))
        writer.flush()
        record(writer, range(500, 1000))
        assert f"is damaged, and kept as {path.with_name('run.1.gnnstab')}; a new one begins as {path}" in (
            writer.failure or ""
        )
        writer.flush()
        with writer.read() as trace:
            assert (trace.steps()[0].step, trace.last_step) == (500, 999)
            assert set(trace.sites()) == {SeriesKey(f"gnn{i}", "train", 0, "score") for i in range(3)}
            assert "created" in trace.meta
    assert steps_in(path.with_name("run.1.gnnstab")) == list(range(500))


@pytest.mark.parametrize("place", ["gnnstab.trace._store.Store.write", "gnnstab.trace._queue.RowEncoder.collect"])
def test_an_error_of_our_own_costs_rows_and_not_the_run(
    path: Path, monkeypatch: pytest.MonkeyPatch, record: Record, place: str
) -> None:
    with TraceWriter(path, flush_seconds=60) as writer:
        record(writer, range(10))
        writer.flush()
        with monkeypatch.context() as patch:
            patch.setattr(place, lambda *arguments: 1 // 0)
            record(writer, range(10, 20))
            writer.flush()
            assert "rows were given up (ZeroDivisionError" in (writer.failure or "")
        record(writer, range(20, 30))
        writer.flush()
        assert {*range(10), *range(20, 30)} <= set(steps_in(path))


def test_the_training_never_waits_for_a_busy_file(path: Path, record: Record) -> None:
    """Were a step written by the training itself, it would fail at the lock, which is given back only afterwards."""
    with TraceWriter(path, flush_seconds=0.01) as writer:
        record(writer, range(10))
        writer.flush()
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        record(writer, range(10, 400))
        writer.event(Event(11, "note"))
        assert steps_in(path) == list(range(10)), "nothing can be written while another program holds the lock"
        assert writer.failure is None
        other.execute("ROLLBACK")
        other.close()
    assert steps_in(path) == list(range(400))


def test_the_queue_is_bounded_when_the_writer_does_not_keep_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("_queue", "_writer"):
        monkeypatch.setattr(f"gnnstab.trace.{module}.SITES_LIMIT", 50)
    held = threading.Event()
    monkeypatch.setattr(
        "gnnstab.trace._queue.RowEncoder.collect", lambda self, do=RowEncoder.collect: (held.wait(), do(self))
    )
    held.set()
    writer = TraceWriter(path, flush_seconds=0.01)
    held.clear()
    time.sleep(0.1)
    ids = [writer.series(SeriesKey("a", "train", 0, "score"))]
    for step in range(200):
        writer.sites(step, ids, [(0.0, 1.0, 1.0, 1, 0)])
    held.set()
    writer.close()
    with writer.read() as trace:
        assert [int(step) for step in trace.sites(layer="a")[SeriesKey("a", "train", 0, "score")]["step"]] == list(
            range(150, 200)
        )
        assert trace.meta["dropped.rows"] == "150"


def test_a_callback_that_raises_changes_nothing(path: Path, record: Record) -> None:
    def broken(message: str) -> None:
        raise RuntimeError("callback")

    with TraceWriter(path, on_failure=broken) as writer:
        record(writer, range(5))
        writer.flush()
        os.unlink(path)
        record(writer, range(5, 10))
        writer.flush()
        assert "callback" in (writer.failure or "")
    assert steps_in(path) == list(range(5, 10))


@pytest.mark.parametrize("in_memory", [True, False])
def test_after_close_nothing_is_recorded_and_nothing_raises(path: Path, record: Record, in_memory: bool) -> None:
    writer = TraceWriter(None if in_memory else path)
    record(writer, range(5))
    writer.close()
    record(writer, range(5, 40_000 if in_memory else 50))
    writer.flush()
    writer.close()
    for _ in range(2):
        with writer.read() as trace:
            assert [row.step for row in trace.steps()] == list(range(5))
            assert trace.complete


def test_threads_may_record_together(path: Path) -> None:
    def work(number: int) -> None:
        for step in range(300):
            key = SeriesKey(f"gnn{(number + step) % 7}", "train", number, "score")
            writer.sites(step, [writer.series(key)], [(0.0, 1.0, 1.0, 1, 0)])

    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with TraceWriter(path, flush_seconds=0.01) as writer:
            threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            with writer.read() as trace:
                assert sum(rows["count"].sum() for rows in trace.sites().values()) == 1200
                assert len(trace.keys()) == 28
    finally:
        sys.setswitchinterval(switch)


def test_open_files_and_threads_do_not_grow(path: Path, record: Record) -> None:
    def look() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    if not os.path.isdir("/proc/self/fd"):
        # Only Linux lists the open files of a process without a further package.
        pytest.skip("needs /proc to count open files")
    before = look()
    for _ in range(5):
        with TraceWriter(path) as writer:
            record(writer, range(5))
            writer.read().close()
        writer.read().close()
    assert look() == before
