"""What a small file may cost: pages that share children, keys of a thousand parts, lists of millions, links to one file."""

from __future__ import annotations

import gc
import json
import os
import sqlite3
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

import readers
from effort import within
from gnnstab.checkpoint import load as load_checkpoint
from gnnstab.config import load
from gnnstab.errors import ConfigurationError, LoadError, TraceError
from gnnstab.probe.replaying import bundle
from gnnstab.trace import Trace, _locate

FAN = 400


def interior(children: list[int], size: int, start: int = 0) -> bytes:
    """A page of a table's b-tree that refers to ``children``, which need not be different ones."""
    page, place, pointers = bytearray(size), size, b""
    for position, child in enumerate(children[:-1], start=1):
        cell = struct.pack(">I", child) + bytes([0x80 | position >> 7, position & 0x7F])
        place -= len(cell)
        page[place : place + len(cell)] = cell
        pointers += struct.pack(">H", place)
    header = b"\x05" + struct.pack(">HHHBI", 0, len(children) - 1, place, 0, children[-1]) + pointers
    page[start : start + len(header)] = header
    return bytes(page)


def leaf(payload: bytes, rows: int, size: int) -> bytes:
    """A page of a table's b-tree with the same row several times."""
    page, place, pointers = bytearray(size), size, b""
    for row in range(1, rows + 1):
        cell = bytes([0x80 | len(payload) >> 7, len(payload) & 0x7F, row]) + payload
        place -= len(cell)
        page[place : place + len(cell)] = cell
        pointers += struct.pack(">H", place)
    header = b"\x0d" + struct.pack(">HHHB", 0, rows, place, 0) + pointers
    page[: len(header)] = header
    return bytes(page)


class Pages:
    """The pages of a trace, to which more are added."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(readers.READERS["trace"].seeds()["run"])
        with sqlite3.connect(path) as connection:
            connection.execute("PRAGMA journal_mode = DELETE")
            self.described = connection.execute(
                "SELECT type, name, tbl_name, rootpage, sql FROM sqlite_master"
            ).fetchall()
        connection.close()
        self.content = bytearray(path.read_bytes())
        (self.size,) = struct.unpack(">H", self.content[16:18])

    def add(self, page: bytes) -> int:
        self.content += page
        return len(self.content) // self.size

    def shared(self, child: int, depth: int) -> int:
        """A page below which ``child`` is met FAN ** depth times."""
        for _ in range(depth):
            child = self.add(interior([child] * FAN, self.size))
        return child

    def page(self, number: int) -> bytes:
        return bytes(self.content[(number - 1) * self.size : number * self.size])

    def put(self, number: int, page: bytes) -> None:
        self.content[(number - 1) * self.size : number * self.size] = page

    def write(self) -> None:
        self.content[28:32] = struct.pack(">I", len(self.content) // self.size)
        self.path.write_bytes(self.content)


def endless_schema(path: Path, depth: int) -> None:
    """The description of the tables, followed by one index that is named FAN ** depth times."""
    pages = Pages(path)
    texts = next(row for row in pages.described if row[4] is None)
    fields = [text.encode() for text in texts[:3]]
    record = (
        bytes([6, *(13 + 2 * len(field) for field in fields), 2, 0]) + b"".join(fields) + struct.pack(">h", texts[3])
    )
    first = pages.page(1)
    length = 2 * struct.unpack(">H", first[103:105])[0] + (12 if first[100] == 5 else 8)
    moved = pages.add(first[100 : 100 + length] + first[length:])
    index = pages.shared(pages.add(leaf(record, 30, pages.size)), depth)
    pages.put(1, first[:100] + interior([moved, index], pages.size, 100)[100:])
    pages.write()


def endless_table(path: Path, table: str, depth: int) -> None:
    """A table whose rows are met again and again."""
    pages = Pages(path)
    root = next(row[3] for row in pages.described if row[1] == table)
    assert pages.page(root)[0] in (5, 13)
    pages.put(root, interior([pages.shared(pages.add(pages.page(root)), depth)] * 2, pages.size))
    pages.write()


def refusal(path: Path) -> str:
    with within(20), pytest.raises(TraceError) as caught:
        Trace.open(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("depth", [2, 6])
def test_a_description_of_tables_without_end_is_refused(depth: int, tmp_path: Path) -> None:
    endless_schema(tmp_path / "run.gnnstab", depth)
    assert "described by more rows than gnnstab writes" in refusal(tmp_path / "run.gnnstab")


def test_an_index_that_is_named_some_times_is_no_reason(tmp_path: Path) -> None:
    """The twin: the same pages without sharing are read, so that the refusal above is one of their number."""
    endless_schema(tmp_path / "run.gnnstab", 0)
    Trace.open(tmp_path / "run.gnnstab").close()


def test_rows_without_end_of_several_ranks_are_refused(tmp_path: Path) -> None:
    for rank in range(2):
        endless_table(tmp_path / f"run.rank{rank}.gnnstab", "step", 6)
    with within(30), pytest.raises(TraceError, match="more rows than gnnstab writes"):
        Trace.open(tmp_path)


@pytest.mark.parametrize("lines", [490, 25])
def test_dots_of_all_keys_are_limited(lines: int, tmp_path: Path) -> None:
    file = tmp_path / "pyproject.toml"
    file.write_text("[tool.gnnstab]\n" + "\n".join(f"a{i}" + ".b" * 998 + " = 1" for i in range(lines)))
    with pytest.raises(ConfigurationError, match="more than 20000 dots"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["a", '"\u2028"'])
@pytest.mark.parametrize("lines", [10, 20_000])
def test_keys_below_a_deep_table_are_limited(lines: int, name: str, tmp_path: Path) -> None:
    text = f"[tool.{name}{'.a' * 990}]\n" + "".join(f"k{i} = 1\n" for i in range(lines))
    (tmp_path / "pyproject.toml").write_text(f"{text}[tool.gnnstab]\nfail-on = 'error'\n", "utf-8")
    with within(1):
        if lines == 10:
            assert load(tmp_path).fail_on == "error"
        else:
            with pytest.raises(ConfigurationError, match="a table with 991 dots"):
                load(tmp_path)


def test_versions_and_globs_are_no_such_keys(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        "[project]\ndependencies = [" + ", ".join(['"a.b>=1.2.3"'] * 300) + ']\n[tool.gnnstab]\nfail-on = "error"\n'
    )
    assert load(tmp_path).fail_on == "error"


@pytest.mark.parametrize("number", ["1" + "0" * 400, "0x" + "f" * 6000])
def test_a_number_beyond_all_floats_is_no_threshold(number: str, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(f"[tool.gnnstab.thresholds.GS301]\nwarn_entropy = {number}\n")
    with pytest.raises(ConfigurationError, match="must be a number") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("key", ["fail-on", "select", "baseline", "docs-url", "suppressions", "thresholds"])
def test_a_number_that_cannot_be_shown_is_one_line(key: str, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(f"[tool.gnnstab]\n{key} = 0x{'f' * 6000}\n")
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("told", "accepted"),
    [
        ("一" * 1000, False),
        (["a"] * 501, False),
        (["a" * 1001], False),
        ([1], False),
        ({"a": 1}, False),
        (["argument 1: why", "b"], True),
    ],
)
def test_what_a_bundle_lacks_is_a_short_list_of_short_texts(told: Any, accepted: bool, folder: Path) -> None:
    about = json.loads((folder / "event.json").read_text())
    (folder / "event.json").write_text(json.dumps({**about, "left_out": told}))
    if accepted:
        assert list(bundle.read(folder).left_out) == told
        return
    with pytest.raises(LoadError, match="left_out") as caught:
        bundle.read(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_what_is_written_of_it_is_read_again() -> None:
    told = bundle._told(["x" * 2000] * 2000)
    assert bundle._left_out(told)[-1] == "1501 more" and bundle._told(["a"]) == ["a"]


def shards(folder: Path, names: list[list[str]]) -> Path:
    """Shards of a model, safetensors, each with tensors of these names."""
    save = pytest.importorskip("safetensors.torch").save_file
    for number, tensors in enumerate(names, start=1):
        save({name: torch.ones(1) for name in tensors}, folder / f"model-{number:05}-of-{len(names):05}.safetensors")
    return folder / f"model-00001-of-{len(names):05}.safetensors"


def test_the_files_of_a_model_hold_together_what_one_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = shards(tmp_path, [[f"a{i}.weight", f"b{i}.weight"] for i in range(4)])
    assert len(load_checkpoint(first).tensors) == 8
    monkeypatch.setattr("gnnstab.checkpoint._shards.MOST_ENTRIES", 5)
    with pytest.raises(LoadError, match=r"model-00003-of-00004.*hold more than 5 tensors"):
        load_checkpoint(first)
    monkeypatch.setattr("gnnstab.checkpoint._shards.MOST_ENTRIES", 8)
    load_checkpoint(first)
    monkeypatch.setattr("gnnstab.checkpoint._shards.MOST_SECONDS", -1)
    with pytest.raises(LoadError, match=r"model-00001-of-00004.*take more than"):
        load_checkpoint(first)


def test_one_file_under_two_names_of_a_model(tmp_path: Path) -> None:
    first = shards(tmp_path, [["a.weight"], ["b.weight"]])
    second = tmp_path / "model-00002-of-00002.safetensors"
    second.unlink()
    os.symlink(first.name, second)
    with pytest.raises(LoadError, match="is the same file as model-00001-of-00002"):
        load_checkpoint(first)


ROWS = {
    "measure": "SELECT i % 40 + 1000, (SELECT min(id) FROM quantity), i + 100000, 0, 0.5, NULL FROM n",
    "statistic": "SELECT 0, i + 1000, (SELECT min(id) FROM series), 0, 1, -1, 1, 0.5, 10, 0 FROM n",
    "step": "SELECT i + 1000, 0, i, 0.5, NULL, NULL, NULL, 0 FROM n",
}


def of_rows(path: Path, **counts: int) -> Path:
    """A trace of so many further rows of each table."""
    path.write_bytes(readers.READERS["trace"].seeds()["run"])
    with sqlite3.connect(path) as connection:
        for table, count in counts.items():
            counted = f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})"
            connection.execute(f"{counted} INSERT INTO {table} {ROWS[table]}")
    connection.close()
    return path


def test_rows_of_all_kinds_are_counted_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind by itself is below the limit, which a diagnosis that reads all of them would take thrice as long for."""
    monkeypatch.setattr(_locate, "MOST_ROWS", 5000)
    for table in ROWS:
        Trace.open(of_rows(tmp_path / f"{table}.gnnstab", **{table: 3000})).close()
    said = refusal(of_rows(tmp_path / "run.gnnstab", **dict.fromkeys(ROWS, 3000)))
    assert "more rows than gnnstab writes" in said


def test_reading_measures_grows_with_their_number_alone(tmp_path: Path) -> None:
    """A tenth of what a trace may hold in a tenth of ten seconds; three times that on a busy machine."""
    with Trace.open(of_rows(tmp_path / "run.gnnstab", measure=300_000)) as opened, within(3):
        assert len(opened.measures()) > 300_000
    assert gc.isenabled()
