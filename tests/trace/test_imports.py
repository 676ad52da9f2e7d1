from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
import gnnstab.trace
from gnnstab.trace import Trace, TraceWriter
with TraceWriter(None) as writer:
    writer.read().sites()
print(*sorted(name for name in ("torch", "torch_geometric", "matplotlib", "scipy", "rich", "click") if name in sys.modules))
"""


def loaded(extra: str = "") -> str:
    done = subprocess.run([sys.executable, "-c", extra + PROGRAM], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_trace_store_needs_no_torch() -> None:
    assert loaded() == ""


def test_the_test_above_can_fail() -> None:
    assert loaded("import click\n") == "click"
