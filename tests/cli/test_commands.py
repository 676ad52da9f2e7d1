"""The group, its help, and the commands about rules."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import click
import pytest
from gnnstab.cli import COMMANDS

from gnnstab import __version__
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
    for name, (_, line) in COMMANDS.items():
        assert name in ran.out
        assert line.split(".")[0][:40] in ran.out


def test_version(cli) -> None:
    assert cli("--version").out == f"gnnstab {__version__}\n"


def test_rules_lists_every_rule(cli) -> None:
    out = cli("rules").out
    for rule in rule_classes():
        assert rule.code in out
        assert rule.name in out
    only = cli("rules", "--select", "GS3").out
    assert "GS301" in only
    assert "GS101" not in only
    assert cli("rules", "--select", "GX").code == 2


def test_explain_by_code_and_name(cli) -> None:
    for name in ("GS301", "gs301", "attention-explosion"):
        out = cli("explain", name).out
        assert "GS301 attention-explosion" in out
        assert "When it is wrong" in out
    unknown = cli("explain", "GS999")
    assert unknown.code == 2
    assert "there is no rule 'GS999'" in unknown.err


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
    assert ran.stdout is not None
    ran.stdout.close()
    _, err = ran.communicate(timeout=60)
    assert err == b""


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
        (("nonsense",), "gnnstab --help lists them"),
    ):
        ran = cli(*arguments)
        assert ran.code == 2
        assert told in ran.err
