"""What the shell completes, through the protocol that the shell's script speaks."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from gnnstab.report import format_names
from gnnstab.rules.registry import rule_classes


def completed(line: str) -> list[str]:
    """The words that bash is offered for the end of ``line``."""
    words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1), "_GNNSTAB_COMPLETE": "bash_complete"}
    call = [sys.executable, "-c", "from gnnstab.cli import main; main()"]
    ran = subprocess.run(call, capture_output=True, text=True, timeout=120, env={**os.environ, **words}, check=False)
    assert ran.stderr == ""
    return [answer.partition(",")[2] for answer in ran.stdout.splitlines()]


CODES = [rule.code for rule in rule_classes()]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("gnnstab explain GS3", [code for code in CODES if code.startswith("GS3")]),
        ("gnnstab explain attention-ex", ["attention-explosion"]),
        ("gnnstab check a.pt --select GS3,GS60", [f"GS3,{code}" for code in CODES if code.startswith("GS60")]),
        ("gnnstab check a.pt --format ", list(format_names())),
        ("gnnstab check a.pt --output ht", ["html="]),
        ("gnnstab replay a.bundle-1 --fix qk", ["qk-norm", "qk-clip"]),
        ("gnnstab verify a.pt --fix dropo", ["dropout"]),
    ],
)
def test_words_are_completed(line: str, expected: list[str]) -> None:
    assert completed(line) == expected
