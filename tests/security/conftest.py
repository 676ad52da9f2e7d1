from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import gnnstab
import readers
import seeds
from strangers import Payload


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """What a payload that runs leaves behind."""
    return tmp_path / "it_ran"


@pytest.fixture
def payload(marker: Path) -> Payload:
    return Payload(marker)


@pytest.fixture(name="changed")
def make(tmp_path: Path) -> Callable[..., Any]:
    """Diagnoses a recorded run without events after the given SQL statements."""

    def change(*statements: str) -> Any:
        path = tmp_path / "run.gnnstab"
        path.write_bytes(readers.READERS["trace"].seeds()["run"])
        connection = sqlite3.connect(path, isolation_level=None)
        for statement in ("DELETE FROM event", *statements):
            connection.execute(statement)
        connection.close()
        return gnnstab.diagnose(path)

    return change


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole bundle."""
    folder = tmp_path / "run.bundle-3"
    folder.mkdir()
    for name, content in seeds.bundle_files().items():
        (folder / name).write_bytes(content)
    return folder
