from __future__ import annotations

from pathlib import Path

import pytest

from strangers import Payload


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """What a payload that runs leaves behind."""
    return tmp_path / "it_ran"


@pytest.fixture
def payload(marker: Path) -> Payload:
    return Payload(marker)
