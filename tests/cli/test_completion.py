"""What the shell completes: in bash itself, and through the protocol that its script speaks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from gnnstab.cli.group import run

from gnnstab.report import format_names
from gnnstab.rules.registry import rule_classes


@pytest.fixture
def answered(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """What the program tells the script about a line, ``type,word`` each; in processes of its own bash asks it below."""

    def asked(line: str) -> list[str]:
        words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1), "_GNNSTAB_COMPLETE": "bash_complete"}
        for name, value in words.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            run([])
        told = capsys.readouterr()
        assert (ended.value.code, told.err) == (0, "")
        return told.out.splitlines()

    return asked


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
def test_words_are_completed(line: str, expected: list[str], answered: Callable[[str], list[str]]) -> None:
    assert [answer.partition(",")[2] for answer in answered(line)] == expected


BASH = """
eval "$(_GNNSTAB_COMPLETE=bash_source gnnstab)"
complete -p gnnstab
while read -ra COMP_WORDS; do
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    COMPREPLY=()
    _gnnstab_completion gnnstab
    echo "${COMPREPLY[*]}"
done
"""
"""Sources the script of the documentation and asks the function that it binds for each line of the input.

Bash cuts a line into words at every ``=`` before it asks.
"""

IN_BASH = {
    "gnnstab check a.pt --format =": " ".join(format_names()),
    "gnnstab check a.pt --output ht": "html=",
    "gnnstab verify --fix = qk": "qk-norm qk-clip",
    "gnnstab dia": "diagnose",
}


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash")
def test_bash_offers_codes_formats_and_fixes(tmp_path: Path) -> None:
    command = tmp_path / "gnnstab"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -c "from gnnstab.cli import main; main()" "$@"\n')
    command.chmod(0o755)
    paths = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    lines = "".join(f"{line}\n" for line in IN_BASH)
    ran = subprocess.run(
        ["bash", "--norc", "-c", BASH], input=lines, capture_output=True, text=True, env=paths, timeout=240
    )
    bound, *answers = ran.stdout.splitlines()
    assert "_gnnstab_completion" in bound, ran.stderr
    assert dict(zip(IN_BASH, answers, strict=True)) == IN_BASH


@pytest.mark.parametrize(
    "line",
    [
        "gnnstab diagnose ac",
        "gnnstab compare a.pt ac",
        "gnnstab verify ac",
        "gnnstab scale --model a:b --batch ac",
        "gnnstab check a.pt --output html = ac",
    ],
)
def test_files_are_left_to_the_shell(line: str, answered: Callable[[str], list[str]]) -> None:
    (answer,) = answered(line)
    assert answer.startswith("file,")
