"""The command line in this process, with diagnoses from the examples instead of a measurement."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
from gnnstab.cli.group import run

import examples
from gnnstab.errors import LoadError, NothingEvaluable


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def calls() -> list[dict]:
    """Arguments of every call of `diagnose`."""
    return []


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture, calls: list[dict]):
    """``cli("check", "one.pt")`` in an empty folder; the file's stem names the example."""

    def diagnose(target, **options):
        calls.append({"target": target, **options})
        stem = Path(target).stem
        if stem == "missing":
            raise LoadError(f"{target}: no such file")
        if stem == "empty":
            raise NothingEvaluable(f"{target}: no attention layer in this file")
        if stem == "crash":
            raise ZeroDivisionError("division\nby zero")
        if stem == "interrupt":
            raise KeyboardInterrupt
        return examples.ALL[stem]()

    monkeypatch.setitem(sys.modules, "gnnstab.diagnosis", SimpleNamespace(diagnose=diagnose))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Ran:
        code = run(list(arguments))
        captured = capfd.readouterr()
        return Ran(code, captured.out, captured.err)

    return call
