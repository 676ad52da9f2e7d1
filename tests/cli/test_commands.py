"""The group, its help, and the commands about rules."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import click
import pytest
from gnnstab.cli import COMMANDS, gate

import examples
from gnnstab import __version__
from gnnstab.report.topic_pages import topics
from gnnstab.rules.registry import rule_classes

GNNSTAB = [sys.executable, "-c", "from gnnstab.cli import main; main()"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_of_the_table_has_help(cli, name: str) -> None:
    module, line = COMMANDS[name]
    command = import_module(module).command
    assert isinstance(command, click.Command)
    assert line[-1] in ".?"
    ran = cli(name, "--help")
    assert ran.code == 0
    assert ran.out.startswith(f"Usage: gnnstab {name}")


def test_help_lists_the_table(cli) -> None:
    ran = cli("--help")
    assert ran.code == 0
    assert all(name in ran.out and line.split(".")[0][:40] in ran.out for name, (_, line) in COMMANDS.items())


def test_python_runs_the_package_as_the_script(cli) -> None:
    ran = python(sys.executable, "-m", "gnnstab", "--version")
    assert ran.stdout == cli("--version").out == f"gnnstab {__version__}\n"


def test_every_word_is_explained_within_fifteen_lines(cli) -> None:
    for name in topics():
        ran = cli("explain", name)
        assert ran.code == 0, name
        assert 2 <= len(ran.out.splitlines()) <= 15, ran.out
        assert max(map(len, ran.out.splitlines())) <= 80


def test_words_of_a_report_that_are_no_rules(cli) -> None:
    fix = cli("explain", "pre-norm-residual").out
    assert "verify --fix\n" in fix or "verify --fix pre-norm-residual" in fix
    assert "fresh copies" in fix
    assert "by you" in cli("explain", "clean-data").out
    for word in ("nan", "NaN", "inf"):
        assert "GS502 non-finite-value" in cli("explain", word).out
    assert "GS601" in cli("explain", "learning-rate").out
    assert "Inf" in cli("explain", "nan", "-v").out


def test_the_list_of_rules_fits_a_screen_and_takes_names(cli) -> None:
    out, whole = cli("rules").out, cli("rules", "-v").out
    assert len(out.splitlines()) <= 15
    assert all(f"GS{digit}  " in out for digit in "12345679")
    assert all(rule.code in whole and rule.name in whole for rule in rule_classes())
    assert cli("rules", "--select", "attention-explosion").out.split() == ["GS301", "error", "attention-explosion"]
    only = cli("rules", "--select", "GS3").out
    assert only.count("\n") == 5 and "GS301" in only and "GS101" not in only
    unknown = cli("rules", "--select", "GSX")
    assert unknown.code == 2 and "command line: select: no rule code begins with 'GSX'" in unknown.err


def test_explain_by_code_and_name(cli) -> None:
    for name in ("GS301", "gs301", "attention-explosion"):
        assert "GS301 attention-explosion" in cli("explain", name).out
        out = cli("explain", name, "-v").out
        assert "GS301 attention-explosion" in out
        assert "When it is silent" in out


def python(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([*arguments], capture_output=True, text=True, timeout=60)


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\nfrom gnnstab.cli.group import run\nrun(['--help'])\n"
        "heavy = {'torch', 'torch_geometric', 'matplotlib', 'numpy', 'scipy', 'rich', 'jinja2'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    ran = python(sys.executable, "-c", program)
    assert ran.returncode == 0, ran.stderr


def test_a_reader_that_leaves_early_is_no_error() -> None:
    ran = subprocess.Popen([*GNNSTAB, "rules"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    ran.stdout.close()
    _, err = ran.communicate(timeout=60)
    assert (err, ran.returncode) == (b"", 2)  # 1 would say that there are findings


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/dev/full")
def test_standard_output_on_a_full_disk() -> None:
    with open("/dev/full", "w") as full:
        ran = subprocess.run([*GNNSTAB, "rules"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert ran.returncode == 2
    assert ran.stderr == "gnnstab: error: cannot write to standard output: No space left on device\n"


def test_mistyped_names_are_answered_with_what_comes_near(cli) -> None:
    for arguments, told in (
        (("diagnoze", "x.pt"), "did you mean 'diagnose'?"),
        (("explain", "explosion"), "did you mean 'attention-explosion'?"),
        (("explain", "GS31"), "'GS301'"),
        (("explain", "GS999"), "there is no rule, cause, fix, signal or word 'GS999'"),
        (("nonsense",), "gnnstab --help lists them"),
    ):
        ran = cli(*arguments)
        assert ran.code == 2
        assert told in ran.err


@pytest.mark.parametrize("name", examples.ALL)
@pytest.mark.parametrize("width", ["80", "120"])
def test_every_default_report_is_short_and_plain_in_a_pipe(cli, name: str, width: str, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", width)
    ran = cli("diagnose", f"{name}.pt")
    assert 3 <= len(ran.out.splitlines()) <= 15
    assert "\x1b" not in ran.out + ran.err


@pytest.mark.parametrize("plain", [True, False], ids=["NO_COLOR", "twin with colours"])
def test_a_terminal_without_colours_gets_no_codes_at_all(cli, plain: bool, monkeypatch) -> None:
    own, terminal = os.openpty()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setenv("NO_COLOR", "1" if plain else "")
    with open(terminal, "w", encoding="utf-8") as stream:  # also what another library may print to the second
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stream)
        with gate.progress() as tell:
            tell("measuring")
        cli("diagnose", "one.pt")
        monkeypatch.undo()
    said = b""
    with suppress(OSError):  # All that was written is read, piece by piece; then the terminal is gone.
        while part := os.read(own, 100_000):
            said += part
    os.close(own)
    assert b"UNSTABLE" in said
    assert (b"\x1b" in said) != plain


@pytest.mark.parametrize("arguments", [("diagnose", ""), ("check", "clean.pt", ""), ("replay", ""), ("watch", "")])
def test_an_empty_target_is_not_the_current_folder(cli, calls: list[dict], arguments: tuple[str, ...]) -> None:
    ran = cli(*arguments)
    assert (ran.code, calls) == (2, [])
    assert "is empty; was a variable not set?" in ran.err


@pytest.mark.skipif(sys.platform == "win32", reason="a current folder cannot be deleted there")
@pytest.mark.parametrize("command", ["check", "diagnose"])
def test_a_deleted_current_folder_is_told(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    ran = cli(command, str(tmp_path / "clean.pt"))
    assert ran.code == 2
    assert ran.err == "gnnstab: error: the current folder was deleted; change to one that exists\n"
