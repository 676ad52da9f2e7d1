"""What other tests have compiled in this process is no part of the runs here."""

from __future__ import annotations

import pytest
from torch._dynamo.utils import counters


@pytest.fixture(autouse=True)
def nothing_compiled_yet() -> None:
    counters.clear()
