"""Hostile traces on the whole way of the command line; what the reader alone refuses is tested in tests/trace."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from gnnstab.cli.group import run as command

import readers

LONG = "x" * 2_000_000

STATEMENTS: dict[str, tuple[str, ...]] = {
    "trigger": (
        "CREATE TABLE victim (x)",
        "CREATE TRIGGER t AFTER INSERT ON meta BEGIN INSERT INTO victim VALUES (1); END",
        "CREATE TEMP TRIGGER u AFTER INSERT ON meta BEGIN SELECT 1; END",
    ),
    "view over everything": ("CREATE VIEW v AS SELECT * FROM statistic a, statistic b, statistic c",),
    "generated column": ("ALTER TABLE event ADD COLUMN more TEXT AS (hex(zeroblob(400000000)))",),
    "index on a function": ("CREATE INDEX i ON meta (length(value))",),
    "names with escapes": ("UPDATE layer SET name = name || char(27) || '[2J' || char(10) || '<script>'",),
    "facts with escapes": ("UPDATE layer SET facts = replace(facts, 'gnn1', '\\u001b[2J\\n</script><img src=x>')",),
    "messages without end": (f"UPDATE event SET message = '{LONG}'",),
    "keys without end": (f"UPDATE series SET layer = '{LONG}' || id",),
    "metadata without end": (f"INSERT INTO meta VALUES ('assumptions', '{LONG}')",),
    "deep detail": (f"UPDATE event SET detail = '{{\"a\": {'[' * 50_000}{']' * 50_000}}}'",),
    "blob as text": ("UPDATE event SET message = x'fffe00ff', kind = 'non-finite'",),
    "blob as number": ("UPDATE statistic SET maximum = zeroblob(1000000)",),
    "text as number": ("UPDATE step SET loss = '1' || char(0) || '2'",),
    "largest steps": ("UPDATE step SET step = step + 9223372036854775000",),
    "negative steps": ("UPDATE statistic SET step = -step",),
    "all NaN": ("UPDATE statistic SET minimum = NULL, maximum = NULL, rms = NULL", "UPDATE measure SET value = NULL"),
    "all infinite": ("UPDATE statistic SET maximum = 9e999, rms = 9e999", "UPDATE step SET loss = 9e999"),
    "largest floats": ("UPDATE statistic SET maximum = 1.7e308, rms = 1.7e308", "UPDATE measure SET value = 1.7e308"),
    "levels that overlap": ("UPDATE resolution SET since = -9e18, until = 9e18",),
    "a million ids": ("UPDATE event SET nodes = '[' || replace(hex(zeroblob(250000)), '0', '7,') || '7]'",),
    "unknown names": ("UPDATE quantity SET name = 'no.such.signal'", "UPDATE series SET site = 'no-such-site'"),
    "a layer twice": ("UPDATE layer SET facts = (SELECT facts FROM layer LIMIT 1)",),
    "no layers": ("DELETE FROM layer",),
    "nothing": tuple(
        f"DELETE FROM {t}" for t in ("layer", "series", "statistic", "quantity", "measure", "step", "event")
    ),
    "many layers": (
        """WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000) INSERT INTO layer
        SELECT 'deep.' || i, i, 'TransformerConv', replace((SELECT facts FROM layer LIMIT 1), 'gnn0', 'deep.' || i) FROM n""",
    ),
}


@pytest.mark.parametrize("name", STATEMENTS)
def test_the_command_line_bears_it(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    path = tmp_path / "run.gnnstab"
    path.write_bytes(readers.READERS["trace"].seeds()["run"])
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in STATEMENTS[name]:
        connection.execute(statement)
    connection.close()
    before = path.read_bytes()
    outputs = [f"--output={kind}={tmp_path / kind}" for kind in ("json", "html", "sarif", "junit", "markdown")]
    code = command(["diagnose", str(path), *outputs])
    captured = capsys.readouterr()
    assert code in (0, 1, 2, 3)
    if code == 2:
        *written, line = captured.err.strip().splitlines()
        assert line.startswith("gnnstab: error: ") and "unexpected" not in line
        assert all(one.startswith("gnnstab: wrote ") for one in written), written
    assert len(captured.out) < 1_000_000 and "\x1b[2J" not in captured.out
    for kind in outputs[1:2]:
        page = Path(kind.split("=", 2)[2])
        if page.exists():
            assert "<script><" not in page.read_text() and "<img src=x>" not in page.read_text()
    assert path.read_bytes() == before, "reading has changed the file"
