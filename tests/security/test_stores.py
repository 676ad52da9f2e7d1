"""What `--store` names is a plain file, or is refused before anything waits for it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pytest

import forked
from gnnstab.errors import UsageError
from gnnstab.verification._arms import ArmResult
from gnnstab.verification._storing import LARGEST
from gnnstab.verification._sweep import sweep


@pytest.mark.parametrize("target", ["pipe", "folder", "device"])
def test_a_store_that_is_no_file_is_refused(target: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "device").symlink_to("/dev/zero")

    def body() -> str:
        with pytest.raises(UsageError) as caught:
            sweep({"a": int}, int, store=tmp_path / target)
        return str(caught.value)

    assert "is not a regular file" in forked.Child(body).result(60)


RESULT = ArmResult(0.5, {"GS301": "warning"}, start=1.0, final=0.5, objective="x")
LINE = json.dumps({"key": "a", "result": asdict(RESULT)}).encode() + b"\n"


def measured(store: Path) -> tuple[list[str], dict[str, ArmResult]]:
    """What is measured anew with this store, and all results."""
    begun: list[str] = []

    def job(key: str) -> ArmResult:
        begun.append(key)
        return RESULT

    found = sweep({key: partial(job, key) for key in "ab"}, ArmResult, store=store)
    return begun, found


@pytest.mark.parametrize(
    "content",
    [
        b"x,y\n1,2\n",
        b"\xff\xfe\n" * 3,
        b"[" * 100_000 + b"\n",
        b"{}\n",
        b'{"key": "a"}\n',
        b'{"key": 1, "result": {}}\n',
        b"\n\n",
        b'{"token": "one line without a line break"}',
        b'{"key": "a", "value": "one line without a line break"}',
    ],
)
def test_a_file_of_somebody_else_is_neither_read_nor_written(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "thesis.csv").write_bytes(content)
    with pytest.raises(UsageError, match="holds no results of gnnstab"):
        measured(tmp_path / "thesis.csv")
    assert (tmp_path / "thesis.csv").read_bytes() == content


def test_a_store_larger_than_any_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "arms.jsonl").open("wb") as stream:
        stream.truncate(LARGEST + 1)
    with pytest.raises(UsageError, match="larger than 64 MiB"):
        measured(tmp_path / "arms.jsonl")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("value", "0.5"),
        ("value", None),
        ("value", 10**400),
        ("codes", []),
        ("codes", {"GS301": 1}),
        ("start", [1.0]),
        ("error", 3),
        ("other", 1),
    ],
)
def test_a_result_that_is_none_is_measured_again(field: str, value: object, tmp_path: Path) -> None:
    row = {"key": "b", "result": {**asdict(RESULT), field: value}}
    if field == "other":
        del row["result"]["value"]  # type: ignore[attr-defined]
    (tmp_path / "arms.jsonl").write_bytes(LINE + json.dumps(row).encode() + b"\n")
    assert measured(tmp_path / "arms.jsonl") == (["b"], {"a": RESULT, "b": RESULT})
    assert measured(tmp_path / "arms.jsonl")[0] == []


@pytest.mark.parametrize("before", [b"", LINE])
def test_half_a_line_of_a_killed_run_costs_that_result_alone(before: bytes, tmp_path: Path) -> None:
    (tmp_path / "arms.jsonl").write_bytes(before + LINE[:30])
    measured(tmp_path / "arms.jsonl")
    assert measured(tmp_path / "arms.jsonl") == ([], {"a": RESULT, "b": RESULT})
