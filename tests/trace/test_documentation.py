"""docs/trace.md names every table, column and view that a trace has."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from gnnstab.trace import TraceWriter
from gnnstab.trace import _schema as schema
from gnnstab.trace._queue import SITES_LIMIT
from gnnstab.trace._resolution import FACTOR, LEVELS
from gnnstab.trace._schema import EVENTS_LIMIT

TEXT = (Path(__file__).parents[2] / "docs" / "trace.md").read_text(encoding="utf-8")


@pytest.fixture
def connection(path: Path) -> Iterator[sqlite3.Connection]:
    TraceWriter(path).close()
    opened = sqlite3.connect(path)
    yield opened
    opened.close()


def documented() -> dict[str, list[str]]:
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^\n]+) \|$", TEXT, flags=re.MULTILINE)
    return {table: re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", columns)) for table, columns in rows}


def test_tables_and_columns(connection: sqlite3.Connection) -> None:
    tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    columns = {table: [row[1] for row in connection.execute(f"PRAGMA table_info({table})")] for table in tables}
    assert documented() == columns
    assert {table: frozenset(names) for table, names in columns.items()} == schema.COLUMNS


def test_views(connection: sqlite3.Connection) -> None:
    for view in ("statistics", "measures"):
        columns = [row[1] for row in connection.execute(f"PRAGMA table_info({view})")]
        (shown,) = re.findall(rf"\*\*`{view}`\*\* \(([^)]*)\)", TEXT)
        assert re.findall(r"`(\w+)`", shown) == columns


def test_metadata(connection: sqlite3.Connection) -> None:
    (text,) = re.findall(r"\*\*Keys of `meta`\*\*: (.*?)\n\n", TEXT, flags=re.DOTALL)
    assert {row[0] for row in connection.execute("SELECT key FROM meta")} <= set(re.findall(r"`([\w.]+)`", text))


def test_marks_and_numbers(connection: sqlite3.Connection) -> None:
    (mark,) = connection.execute("PRAGMA application_id").fetchone()
    assert f"is {mark} (`gnst`)" in TEXT
    assert f"now {schema.SCHEMA_VERSION}." in TEXT
    assert f"{FACTOR ** (LEVELS - 1):,}".replace(",", " ") in TEXT
    assert f"{EVENTS_LIMIT:,}".replace(",", " ") in TEXT
    assert f"{SITES_LIMIT:,}".replace(",", " ") in TEXT
    assert "64 MiB" in TEXT
    assert connection.execute("SELECT value FROM meta WHERE key = 'budget'").fetchone() == (str(64 * 2**20),)
