"""The files beside a trace (`-journal`, `-wal`, `-shm`) come from the same stranger: none may harm another file."""

from __future__ import annotations

import os
import sqlite3
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from gnnstab.cli.group import run as command

import forked
import readers
from gnnstab.errors import TraceError
from gnnstab.trace import Trace, TraceWriter
from pages import JOURNAL, super_journal


def read(path: Path) -> None:
    with suppress(TraceError), Trace.open(path) as trace:
        trace.events(), trace.sites()


def overwrite(path: Path) -> None:
    with suppress(TraceError):
        TraceWriter(path).close()


def cli(*arguments: str) -> Callable[[Path], None]:
    return lambda path: command([argument.replace("TRACE", str(path)) for argument in arguments])  # type: ignore[func-returns-value]


WAYS: dict[str, Callable[[Path], None]] = {
    "Trace.open": read,
    "TraceWriter": overwrite,
    "diagnose": cli("diagnose", "TRACE"),
    "check": cli("check", "TRACE"),
    "compare": cli("compare", "TRACE", "TRACE"),
    "watch": cli("watch", "--once", "TRACE"),
}
"""Every way from a user to the file of a stranger."""


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    folder = tmp_path / "downloaded"
    folder.mkdir()
    path = folder / "run.gnnstab"
    path.write_bytes(readers.READERS["trace"].seeds()["run"])
    return path


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "thesis.txt"
    path.write_text("three years of work")
    return path


def unharmed(victim: Path) -> bool:
    return victim.exists() and victim.read_text() == "three years of work"


def test_the_attack_works_on_sqlite_itself(trace: Path, victim: Path) -> None:
    """Without this control a change of SQLite's format could make the tests below pass for nothing."""
    Path(f"{trace}-journal").write_bytes(super_journal(trace.read_bytes(), victim))
    connection = sqlite3.connect(trace)
    connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    connection.close()
    assert not victim.exists()


@pytest.mark.parametrize("way", WAYS)
def test_a_journal_that_names_a_super_journal_deletes_nothing(way: str, trace: Path, victim: Path) -> None:
    Path(f"{trace}-journal").write_bytes(super_journal(trace.read_bytes(), victim))
    WAYS[way](trace)
    assert unharmed(victim)


@pytest.mark.parametrize("way", ["Trace.open", "TraceWriter"])
@pytest.mark.parametrize("name", ["./thesis.txt", "../thesis.txt", "a?b%25 c.txt", "ünï\u202e.txt", b"\xff\xfe.txt"])
def test_whatever_the_name_of_the_super_journal(
    name: str | bytes, way: str, trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trace.parent)
    victim = Path(os.fsdecode(name))
    victim.write_text("three years of work")
    Path(f"{trace}-journal").write_bytes(super_journal(trace.read_bytes(), victim))
    WAYS[way](trace)
    assert unharmed(victim)


def _symlink(victim: Path, companion: Path) -> None:
    companion.symlink_to(victim)


def _hard_link(victim: Path, companion: Path) -> None:
    os.link(victim, companion)


def make_wal(trace: Path) -> None:
    """Turn the trace into one that SQLite opens with a write-ahead log."""
    connection = sqlite3.connect(trace, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.close()


def test_reading_an_ended_run_in_log_mode_leaves_nothing_beside_it(trace: Path) -> None:
    make_wal(trace)
    with Trace.open(trace) as opened:
        assert opened.complete and opened.layers() and os.listdir(trace.parent) == [trace.name]
    assert os.listdir(trace.parent) == [trace.name]


@pytest.mark.parametrize("way", ["Trace.open", "TraceWriter"])
@pytest.mark.parametrize("link", [_symlink, _hard_link])
@pytest.mark.parametrize("end", ["-journal", "-wal", "-shm"])
@pytest.mark.parametrize("state", ["whole", "empty", "missing"])
def test_a_companion_that_is_a_link_changes_nothing(
    state: str, end: str, link: Callable[[Path, Path], None], way: str, trace: Path, victim: Path
) -> None:
    make_wal(trace)
    if state == "empty":
        trace.write_bytes(b"")
    if state == "missing":
        trace.unlink()
    link(victim, Path(f"{trace}{end}"))
    WAYS[way](trace)
    assert unharmed(victim)


@pytest.mark.parametrize("way", ["Trace.open", "TraceWriter"])
@pytest.mark.parametrize("end", ["-journal", "-wal", "-shm"])
@pytest.mark.parametrize("state", ["whole", "missing"])
def test_a_companion_that_points_to_nothing_creates_nothing(
    state: str, end: str, way: str, trace: Path, tmp_path: Path
) -> None:
    make_wal(trace)
    if state == "missing":
        trace.unlink()
    Path(f"{trace}{end}").symlink_to(tmp_path / "planted")
    WAYS[way](trace)
    assert not (tmp_path / "planted").exists()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("end", ["-journal", "-wal", "-shm"])
def test_a_companion_that_is_a_pipe_does_not_hang(end: str, way: str, trace: Path) -> None:
    make_wal(trace)
    os.mkfifo(f"{trace}{end}")
    forked.Child(lambda: WAYS[way](trace)).result(60)


@pytest.mark.parametrize("page", [0, 1, 512, 65536, 2**31])
@pytest.mark.parametrize("sector", [0, 1, 513, 2**20, 2**31])
@pytest.mark.parametrize("records", [0, 1, 2**31, 2**32 - 1])
def test_journals_with_senseless_headers(records: int, sector: int, page: int, trace: Path) -> None:
    header = JOURNAL + struct.pack(">IIIII", records, 1, 2**30, sector, page)
    Path(f"{trace}-journal").write_bytes(header.ljust(512, b"\0") + b"\0\0\0\1" + b"\xff" * 5000)
    before = trace.read_bytes()
    read(trace)
    assert trace.read_bytes() == before


def test_a_trace_behind_a_link_is_checked_where_sqlite_looks(trace: Path, victim: Path, tmp_path: Path) -> None:
    """SQLite follows the links of the database before it names the companions."""
    (tmp_path / "link.gnnstab").symlink_to(trace)
    Path(f"{trace}-journal").write_bytes(super_journal(trace.read_bytes(), victim))
    read(tmp_path / "link.gnnstab")
    assert unharmed(victim)
    os.unlink(f"{trace}-journal")
    make_wal(trace)
    os.link(victim, f"{trace}-shm")
    read(tmp_path / "link.gnnstab")
    overwrite(tmp_path / "link.gnnstab")
    assert unharmed(victim)


@pytest.mark.parametrize("link", [_symlink, _hard_link])
def test_a_lock_that_is_a_link_truncates_nothing(link: Callable[[Path, Path], None], trace: Path, victim: Path) -> None:
    link(victim, Path(f"{trace}-lock"))
    with pytest.raises(TraceError, match="lock"):
        TraceWriter(trace)
    assert unharmed(victim)
    assert not (trace.parent / "run.1.gnnstab").exists()


def test_a_lock_that_points_to_nothing_creates_nothing(trace: Path, tmp_path: Path) -> None:
    Path(f"{trace}-lock").symlink_to(tmp_path / "planted")
    with pytest.raises(TraceError, match="is a link"):
        TraceWriter(trace)
    assert not (tmp_path / "planted").exists()


def test_a_file_that_is_no_lock_is_left_alone(trace: Path) -> None:
    lock = Path(f"{trace}-lock")
    lock.write_text("my notes on locks")
    with pytest.raises(TraceError, match="is no lock of gnnstab"):
        TraceWriter(trace)
    assert lock.read_text() == "my notes on locks"


def test_a_pipe_in_the_place_of_the_lock_does_not_hang(trace: Path) -> None:
    os.mkfifo(f"{trace}-lock")
    forked.Child(lambda: overwrite(trace)).result(60)
    assert not (trace.parent / "run.1.gnnstab").exists()


def test_the_lock_of_a_killed_process_is_taken_over(trace: Path) -> None:
    lock = Path(f"{trace}-lock")
    for content in ("", "12345"):
        lock.write_text(content)
        TraceWriter(trace).close()
        assert not lock.exists()
