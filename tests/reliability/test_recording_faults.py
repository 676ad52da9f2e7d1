"""Whatever happens to the trace, the training goes on, the user is told once, and what was flushed stays."""

from __future__ import annotations

import os
import resource
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

import gnnstab
from forked import Child, last_step, wait_until
from gnnstab.errors import TraceError
from gnnstab.records import SeriesKey
from gnnstab.report.summary import state
from gnnstab.trace import Trace
from gnnstab.trace._resolution import SHARED_SITES
from side_by_side import Loop, Net, Run, graph, hooks_of, unnoticed

NOBODY = 65534
"""User and group id without rights of their own, on every Linux."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.gnnstab"


def train(model: Net, optimizer: torch.optim.Optimizer, start: int, stop: int, run: Run | None = None) -> None:
    for number in range(start, stop):
        optimizer.zero_grad()
        loss = model(*graph(number)).square().mean()
        loss.backward()
        if run is not None:
            run.keep(loss)
            run.keep_gradients(model)
        optimizer.step()


def setup() -> tuple[Net, torch.optim.Optimizer]:
    model = Net()
    return model, torch.optim.SGD(model.parameters(), lr=1e-3)


def flush(monitor: gnnstab.Monitor) -> None:
    """Wait for the writer, as any reader of the trace does."""
    monitor.trace.close()


def test_a_second_monitor_on_the_same_file_is_refused(path: Path) -> None:
    model, optimizer = setup()
    with gnnstab.Monitor(model, optimizer=optimizer, trace=path) as first:
        with pytest.raises(TraceError, match=r"run\.gnnstab: another Monitor .*; give each its own path"):
            gnnstab.Monitor(model, optimizer=optimizer, trace=path)
        train(model, optimizer, 0, 4)
    with first.trace as trace:
        assert len(trace.steps()) == 4 and trace.complete
    assert hooks_of(model) == []


def test_a_second_process_on_the_same_file_is_refused(path: Path) -> None:
    def other() -> str:
        model, optimizer = setup()
        with pytest.raises(TraceError) as caught:
            gnnstab.Monitor(model, optimizer=optimizer, trace=path)
        return str(caught.value)

    model, optimizer = setup()
    with gnnstab.Monitor(model, optimizer=optimizer, trace=path):
        message = Child(other).result()
    assert message == f"{path}: process {os.getpid()} is writing it; give this run its own path"


def disturbed(meanwhile: Callable[[], None], *, for_good: bool = False) -> Loop:
    """Twelve steps; after five of them, which have been flushed, something happens to the files of the trace, which is read again later unless they are gone for good."""

    def loop(run: Run) -> None:
        model, optimizer = setup()
        with run.watching(model, optimizer=optimizer) as monitor:
            train(model, optimizer, 0, 5, run)
            if monitor is not None:
                flush(monitor)
                meanwhile()
            train(model, optimizer, 5, 10, run)
            if monitor is not None and not for_good:
                flush(monitor)
            train(model, optimizer, 10, 12, run)

    return loop


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def test_the_trace_is_deleted_under_the_writer(path: Path) -> None:
    run = unnoticed(disturbed(lambda: empty(path.parent)), trace=path)
    assert len(run.warned) == 1 and "was deleted; a new one begins as" in run.warned[0]
    with Trace.open(path) as trace:
        steps = [row.step for row in trace.steps()]
        assert steps == list(range(steps[0], 12)) and 0 < steps[0] < 12 and trace.complete
        assert int(trace.meta["dropped.rows"]) >= steps[0]


def test_the_trace_is_deleted_and_restored(path: Path) -> None:
    """Who reads the restored half is told that it is one; neither half draws a verdict about the training."""
    kept: dict[str, bytes] = {}

    def loop(run: Run) -> None:
        model, optimizer = setup()
        with run.watching(model, optimizer=optimizer) as monitor:
            for start in (0, 4, 8):
                train(model, optimizer, start, start + 4, run)
                if monitor is not None:
                    flush(monitor)
                    if start == 0:
                        kept.update({file.name: file.read_bytes() for file in path.parent.iterdir()})
                        empty(path.parent)
                    if start == 4:
                        empty(path.parent)
                        for name, content in kept.items():
                            (path.parent / name).write_bytes(content)

    run = unnoticed(loop, trace=path)
    assert len(run.warned) == 1 and "was deleted" in run.warned[0]
    for found in (run.monitor.diagnose(), gnnstab.diagnose(path)):
        assert [f.code for f in found.findings if not f.code.startswith("GS9") and f.severity != "info"] == []
        assert not any(cause.status == "root-cause" for cause in found.causes)
        assert {"GS902", "GS903"} & {f.code for f in found.findings}, "that something is missing is said"


def test_the_folder_vanishes(path: Path) -> None:
    folder = path.parent / "sub"
    folder.mkdir()

    def vanish() -> None:
        empty(folder)
        folder.rmdir()

    run = unnoticed(disturbed(vanish, for_good=True), trace=folder / "run.gnnstab")
    assert len(run.warned) == 1 and "sub/run.gnnstab" in run.warned[0]


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a folder to another user, which only root may")
def test_the_folder_becomes_read_only() -> None:
    """As a user without rights, since root may write everywhere: the file that is open is filled all the same."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chown(folder, NOBODY, NOBODY)
        path = folder / "run.gnnstab"

        def unprivileged() -> tuple[list[str], str]:
            os.setegid(NOBODY)
            os.seteuid(NOBODY)
            warned = unnoticed(disturbed(lambda: folder.chmod(0o555)), trace=path).warned
            with pytest.raises(TraceError) as caught:
                gnnstab.Monitor(setup()[0], trace=folder / "another.gnnstab")
            return warned, str(caught.value)

        warned, refused = Child(unprivileged).result()
        assert len(warned) <= 1 and "cannot be written here (Permission denied)" in refused
        with Trace.open(path) as trace:
            assert [row.step for row in trace.steps()] == list(range(12))


def test_a_full_disk(path: Path) -> None:
    """A limit on the size of files refuses writes as a full disk does."""

    def limited() -> tuple[list[str], int, str | None]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (250_000, resource.RLIM_INFINITY))
        flushed = 0

        def loop(run: Run) -> None:
            nonlocal flushed
            model, optimizer = setup()
            with run.watching(model, optimizer=optimizer) as monitor:
                for start in range(0, 120, 10):
                    train(model, optimizer, start, start + 10, run)
                    if monitor is not None and not run.warned and not run.monitor._writer.failure:
                        flush(monitor)
                        flushed = start + 9 if not run.monitor._writer.failure else flushed

        run = unnoticed(loop, trace=path)
        return run.warned, flushed, run.monitor._writer.failure

    warned, flushed, failure = Child(limited).result(120)
    assert failure is not None and 9 <= flushed < 119
    assert len(warned) == 1 and "cannot be written" in warned[0] and "the training goes on" in warned[0]
    with Trace.open(path) as trace:
        recorded = [row.step for row in trace.steps()]
    assert recorded[: flushed + 1] == list(range(flushed + 1)), "what was flushed before is there"


def test_what_the_file_does_not_take_is_judged_all_the_same(path: Path) -> None:
    """The values explode after the file refuses: the monitor's own diagnosis says so, and that of the file is not calm."""

    def refused() -> tuple[str, set[str]]:
        torch.manual_seed(0)
        model, optimizer = setup()
        with gnnstab.Monitor(model, optimizer=optimizer, trace=path, on_finding="ignore") as monitor:
            train(model, optimizer, 0, 8)
            flush(monitor)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
            for number in range(8, 16):
                optimizer.zero_grad()
                loss = model(*graph(number)).square().mean() * 1e3 ** (number - 8)
                loss.backward()
                monitor.loss(loss * (float("nan") if number == 15 else 1))
                optimizer.step()
        said = monitor.diagnose()
        return state(said), {finding.code for finding in said.findings}

    said, codes = Child(refused).result(120)
    assert said == "unstable" and "GS502" in codes
    found = gnnstab.diagnose(path)
    assert state(found) == "nothing-found" and "GS903" in {finding.code for finding in found.findings}


@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0], ids=["backwards", "forwards"])
def test_the_clock_jumps(path: Path, monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    def loop(run: Run) -> None:
        model, optimizer = setup()
        with run.watching(model, optimizer=optimizer):
            train(model, optimizer, 0, 5, run)
            with monkeypatch.context() as patch:
                now, now_ns = time.time, time.time_ns
                patch.setattr(time, "time", lambda: now() + jump)
                patch.setattr(time, "time_ns", lambda: now_ns() + int(jump * 1e9))
                train(model, optimizer, 5, 10, run)
            train(model, optimizer, 10, 15, run)

    run = unnoticed(loop, trace=path)
    assert run.warned == []
    with Trace.open(path) as trace:
        times = [row.time for row in trace.steps()]
    assert len(times) == 15 and times == sorted(times) and times[0] >= 0 and times[-1] < 3600


def test_a_process_forked_from_the_loop_leaves_the_trace_alone(path: Path) -> None:
    """The child trains on with a monitor that has become inert; the parent's trace holds the parent's steps alone."""
    model, optimizer = setup()
    with gnnstab.Monitor(model, optimizer=optimizer, trace=path) as monitor:
        train(model, optimizer, 0, 5)

        def forked() -> int:
            train(model, optimizer, 100, 110)
            monitor.__exit__(None, None, None)
            return len(hooks_of(model))

        child = Child(forked)
        train(model, optimizer, 5, 10)
        assert child.result() == 0
        train(model, optimizer, 10, 15)
    with Trace.open(path) as trace:
        assert [row.step for row in trace.steps()] == list(range(15)) and trace.complete
        assert trace.notes == ()


def test_workers_of_a_loader(path: Path) -> None:
    """Loader workers are forked from the training process while the trace is being written."""

    def loop(run: Run) -> None:
        model, optimizer = setup()
        loader = DataLoader(range(12), batch_size=2, num_workers=1, multiprocessing_context="fork")
        with run.watching(model, optimizer=optimizer):
            for numbers in loader:
                train(model, optimizer, int(numbers[0]), int(numbers[0]) + 1, run)

    run = unnoticed(loop, trace=path)
    assert run.warned == []
    with Trace.open(path) as trace:
        assert len(trace.steps()) == 6 and trace.complete


def test_other_threads_that_call_the_model_are_no_part_of_the_record(path: Path) -> None:
    """Inference in other threads while one trains: the same record as without it, and the same training."""

    def loop(run: Run, threads: int) -> None:
        torch.manual_seed(1)
        model = Net(dropout=0.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        stop = threading.Event()

        def infer() -> None:
            while not stop.is_set():
                with torch.no_grad():
                    model(*graph(1))

        with run.watching(model, optimizer=optimizer):
            others = [threading.Thread(target=infer) for _ in range(threads)]
            for other in others:
                other.start()
            train(model, optimizer, 0, 20, run)
            stop.set()
            for other in others:
                other.join()

    alone = recorded(unnoticed(lambda run: loop(run, 0)))
    beside = recorded(unnoticed(lambda run: loop(run, 2), trace=path))
    assert alone == beside and len(alone) > 8


def recorded(run: Run) -> dict[SeriesKey, list[tuple[float, ...]]]:
    """Every row of the light tier; how many steps share a row of a gradient depends on when it was written."""
    assert run.warned == []
    with run.monitor.trace as trace:
        return {
            key: [(rows["minimum"].min(), rows["maximum"].max(), rows["span"].sum(), rows["count"].sum())]
            if key.site in SHARED_SITES
            else rows.tolist()
            for key, rows in trace.sites().items()
        }


def test_a_thread_that_trains_while_another_made_the_monitor(path: Path) -> None:
    """At most the first step is not seen; nothing fails."""
    model, optimizer = setup()
    with gnnstab.Monitor(model, optimizer=optimizer, trace=path, on_finding="raise") as monitor:
        thread = threading.Thread(target=train, args=(model, optimizer, 0, 10))
        thread.start()
        thread.join()
    with monitor.trace as trace:
        assert len(trace.steps()) >= 9 and trace.events("tool-failure") == ()
        (rows,) = trace.sites(layer="first", site="grad_output").values()
        assert len(rows) == 9


@pytest.mark.parametrize("delay", [0.0, 0.003, 0.011, 0.037])
def test_an_interrupt_at_any_moment_ends_the_loop_and_keeps_the_trace(path: Path, delay: float) -> None:
    """SIGINT, as Ctrl-C sends it, arrives in the model, in a hook, at the end of a step, …"""

    def endless() -> None:
        model, optimizer = setup()
        with gnnstab.Monitor(model, optimizer=optimizer, trace=path, schedule=2) as monitor:
            number = 0
            while True:
                train(model, optimizer, number, number + 1)
                number += 1
                if number == 3:
                    flush(monitor)

    child = Child(endless)
    wait_until(lambda: last_step(path) >= 2, "the first steps")
    time.sleep(delay)
    child.signal(signal.SIGINT)
    assert child.result() == "KeyboardInterrupt"
    with Trace.open(path) as trace:
        assert trace.complete and [row.step for row in trace.steps()][:3] == [0, 1, 2]
        assert trace.events("tool-failure") == ()
