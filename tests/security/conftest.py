from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """What a payload that runs leaves behind."""
    return tmp_path / "it_ran"


@pytest.fixture
def payload(marker: Path) -> Payload:
    return Payload(marker)
