"""A trace of a stranger costs at most a stated amount of memory and time, and none of its SQL ever runs."""

from __future__ import annotations

import os
import random
import resource
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

import forked
import gnnstab
import readers
from effort import within
from gnnstab.errors import TraceError
from gnnstab.report import html
from gnnstab.report.evidence import Evidence
from gnnstab.trace import Trace
from gnnstab.trace._opening import LARGEST_FILE

MEMORY = 2**30
"""Bytes that reading may add to a process; the largest honest trace takes about as much."""


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "run.gnnstab"
    path.write_bytes(readers.READERS["trace"].seeds()["run"])
    return path


def change(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in ("BEGIN", *statements, "COMMIT"):
        connection.execute(statement)
    connection.close()


def read_everything(path: Path) -> str:
    """What a reader says; every method on its own, since each may be the first to fail."""
    said = []
    readings: list[Callable[[Trace], object]] = [
        lambda t: (t.meta, t.complete, t.last_step),
        lambda t: (t.layers(), t.blind()),
        lambda t: (t.keys(), t.sites(), t.sites(points=100)),
        lambda t: t.measures(),
        lambda t: (t.steps(), t.step_arrays()),
        lambda t: t.events(),
    ]
    for reading in readings:
        try:
            with Trace.open(path) as opened:
                reading(opened)
        except TraceError as error:
            said.append(str(error))
    assert not any("\n" in message for message in said)
    return "; ".join(said)


def bounded(path: Path, seconds: float = 40.0) -> str:
    """Read it all in a child that may take no more memory than is stated."""

    def body() -> str:
        with open("/proc/self/statm") as stream:
            used = int(stream.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        with within(seconds):
            said = read_everything(path)
        return said

    return str(forked.Child(body).result(4 * seconds))


def numbers(count: int) -> str:
    return f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})"


@pytest.mark.parametrize("end", ["", "-wal", "-journal"])
def test_a_sparse_file_is_refused_by_its_apparent_size(end: str, trace: Path) -> None:
    os.close(os.open(f"{trace}{end}", os.O_CREAT | os.O_WRONLY))
    os.truncate(f"{trace}{end}", 8 * 2**30)
    with within(1):
        assert "larger than any trace of gnnstab" in read_everything(trace)


def test_a_journal_that_claims_a_larger_file(trace: Path) -> None:
    """Playing it back makes the copy grow; the copy in memory must not."""
    pages = LARGEST_FILE // 4096 + 1
    header = bytes.fromhex("d9d505f920a163d7") + struct.pack(">IIIII", 0, 1, pages, 512, 4096)
    Path(f"{trace}-journal").write_bytes(header.ljust(512, b"\0"))
    assert bounded(trace) == ""
    with trace.open("r+b") as stream:
        stream.seek(28)  # The number of pages in the header of the database; without it SQLite asks the file.
        stream.write(struct.pack(">I", pages))
    assert "it claims to be of" in bounded(trace)


ROWS = {
    "events": f"{numbers(400_000)} INSERT INTO event SELECT i + 99, 1, '', '', '', 0, '', '', '[]', '[]', '[]', '', '{{}}' FROM n",
    "layers": f"{numbers(300_000)} INSERT INTO layer SELECT 'l' || i, i, '', '{{}}' FROM n",
    "series": f"{numbers(300_000)} INSERT INTO series SELECT i + 999, '', '', 0, '' FROM n",
    "quantities": f"{numbers(300_000)} INSERT INTO quantity SELECT i + 999, '', '', 0, '', 0 FROM n",
    "metadata": f"{numbers(300_000)} INSERT INTO meta SELECT 'm' || i, '' FROM n",
    "levels": f"{numbers(30_000)} INSERT INTO resolution SELECT i + 99, 1, 0, 1 FROM n",
}


@pytest.mark.parametrize("name", ROWS)
def test_more_rows_than_gnnstab_writes(name: str, trace: Path) -> None:
    change(trace, ROWS[name])
    assert "more rows than gnnstab writes" in bounded(trace)


TEXTS = {
    "events of lists": f"{numbers(200)} INSERT INTO event SELECT i + 99, 1, '', '', '', 0, '', '', "
    "'[' || replace(hex(zeroblob(150000)), '00', '[],') || '[]]', '[]', '[]', '', '{}' FROM n",
    "events of objects": f"{numbers(60)} INSERT INTO event SELECT i + 99, 1, '', '', '', 0, '', '', '[]', '[]', '[]', '', "
    """'{"a": [' || replace(hex(zeroblob(150000)), '00', '[],') || '[]]}' FROM n""",
    "a number that is a blob": "UPDATE statistic SET maximum = zeroblob(3000000) WHERE step < 3",
    "blobs as facts": f"{numbers(40)} INSERT INTO layer SELECT 'l' || i, i, '', zeroblob(3000000) FROM n",
    "long names": f"{numbers(40)} INSERT INTO series SELECT i + 999, hex(zeroblob(1000000)), '', 0, '' FROM n",
    "long details": f"{numbers(80)} INSERT INTO measure SELECT i, 1, i, 0, 0.5, hex(zeroblob(1000000)) FROM n",
}


@pytest.mark.parametrize("name", TEXTS)
def test_more_text_than_gnnstab_writes(name: str, trace: Path) -> None:
    change(trace, TEXTS[name])
    assert bounded(trace) or name == "events of objects"  # As much as is read, and parsed within the bounds.


@pytest.mark.parametrize("query", ["UPDATE meta SET value = 1", "ATTACH '/tmp/x' AS x", "SELECT load_extension('x')",
    "SELECT readfile('/etc/hostname')", "SELECT * FROM pragma_database_list", "CREATE TEMP TABLE x (y)", "SELECT * FROM v",
    "PRAGMA writable_schema = ON", "PRAGMA temp_store_directory = '/'", "SELECT hex(value) FROM meta",
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n"])  # fmt: skip
def test_a_connection_for_reading_does_nothing_else(query: str, trace: Path) -> None:
    """Whatever SQL a file might bring to run, the connection refuses it while it is prepared."""
    change(trace, "CREATE VIEW v AS SELECT key FROM meta")
    with Trace.open(trace) as opened, pytest.raises(TraceError, match=r"not authorized|prohibited|no such"):
        opened._parts[0].connection.rows(query)


def test_triggers_do_not_run_while_an_old_trace_is_upgraded(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The upgrade works on a copy that holds the triggers of a stranger, and writes."""
    change(
        trace,
        "CREATE TABLE victim (x)",
        "CREATE TRIGGER t AFTER UPDATE ON meta BEGIN INSERT INTO victim VALUES (1); END",
        "CREATE TRIGGER u AFTER INSERT ON meta BEGIN UPDATE layer SET name = 'changed'; END",
    )
    monkeypatch.setattr("gnnstab.trace._schema.SCHEMA_VERSION", 2)
    for statement in ("UPDATE meta SET value = 'x'", "INSERT INTO meta VALUES ('new', '')"):
        monkeypatch.setattr("gnnstab.trace._schema.MIGRATIONS", {1: (statement,)})
        with pytest.raises(TraceError, match="not authorized"):
            Trace.open(trace)
    monkeypatch.setattr("gnnstab.trace._schema.MIGRATIONS", {1: ("ALTER TABLE blind ADD COLUMN extra TEXT",)})
    with Trace.open(trace) as opened:
        assert "changed" not in {layer.name for layer in opened.layers()}


@pytest.mark.parametrize("seed", range(4))
def test_pages_and_journals_that_lie(seed: int, trace: Path) -> None:
    """Whole pages in each other's place, pointers to other pages, journals that put such pages back: structure, not bytes."""
    content = trace.read_bytes()
    (size,) = struct.unpack(">H", content[16:18])
    count = len(content) // size
    rng = random.Random(seed)

    def page(number: int) -> bytes:
        return content[(number - 1) * size : number * size]

    def body() -> int:
        refused = 0
        for _ in range(40):
            pages = [page(number) for number in range(1, count + 1)]
            journal = b""
            for _ in range(rng.choice((1, 2, 5))):
                target, source = rng.randrange(2, count + 1), rng.randrange(1, count + 1)
                kind = rng.choice(("swap", "pointer", "cells", "journal"))
                changed = bytearray(pages[target - 1])
                if kind == "swap":
                    changed = bytearray(page(source))
                elif kind == "pointer":  # The right-most child of an interior page, or a cell's left one.
                    changed[0] = rng.choice((2, 5, changed[0]))
                    changed[8:12] = struct.pack(">I", source)
                elif kind == "cells":  # Every cell is the same one.
                    changed[12:200] = changed[12:14] * 94
                else:
                    checksum = 1 + sum(page(source)[i] for i in range(size - 200, 0, -200))
                    journal += struct.pack(">I", target) + page(source) + struct.pack(">I", checksum)
                pages[target - 1] = bytes(changed)
            trace.write_bytes(b"".join(pages))
            Path(f"{trace}-journal").unlink(missing_ok=True)
            if journal:
                header = bytes.fromhex("d9d505f920a163d7")
                header += struct.pack(">IIIII", len(journal) // (size + 8), 1, count, 512, size)
                Path(f"{trace}-journal").write_bytes(header.ljust(512, b"\0") + journal)
            with within(10):
                refused += bool(read_everything(trace))
        return refused

    before = set(trace.parent.iterdir())
    assert 5 < forked.Child(body).result(200) <= 40
    assert set(trace.parent.iterdir()) <= before | {Path(f"{trace}-journal")}


def test_rows_that_are_each_damaged_in_their_own_way(trace: Path) -> None:
    number = 20_000
    rows = f"WITH RECURSIVE n(i) AS (SELECT 1000 UNION ALL SELECT i + 1 FROM n WHERE i < {999 + number})"
    change(trace, f"INSERT INTO series {rows} SELECT i, 'l', 'train', 'x' || i, 'score' FROM n")
    with Trace.open(trace) as opened:
        with within(2):
            opened.keys()
        *first, last = opened.notes
        assert len(first) == 50 and all("'x10" in note for note in first)
        assert f"{number - 50} more kinds of damage" in last


def test_layers_by_the_thousand_that_nobody_could_see_make_a_page(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200)"
    change(trace, f"INSERT INTO blind {rows} SELECT 'l' || i, 'score', 'r' FROM n")
    made: list[str] = []
    own = Evidence._profile
    monkeypatch.setattr(Evidence, "_profile", lambda self, name: made.append(name) or own(self, name))
    html.render(gnnstab.diagnose(trace))
    assert len(made) == len(set(made)) < 100
