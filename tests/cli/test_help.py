"""What a command says of itself: examples that its own options accept, and pages that open with three sentences."""

from __future__ import annotations

import shlex
from importlib import import_module

import click
import pytest
from gnnstab.cli import COMMANDS
from gnnstab.cli.examples import EXAMPLES

from gnnstab.rules import RULES
from gnnstab.rules.pages import brief


def test_every_command_has_examples_and_no_others_have() -> None:
    assert EXAMPLES.keys() == {"", *COMMANDS}
    assert all(EXAMPLES.values())


def test_the_help_of_the_program_ends_with_calls_of_its_commands(cli) -> None:
    shown = cli("-h").out.rstrip()
    assert shown.endswith("\n".join(f"    {line}" for line in EXAMPLES[""]))
    assert all(shlex.split(line)[1] in COMMANDS for line in EXAMPLES[""])


@pytest.mark.parametrize(("name", "line"), [(name, line) for name, lines in EXAMPLES.items() if name for line in lines])
def test_an_example_stands_in_the_help_and_is_understood(cli, name: str, line: str) -> None:
    assert f"\n    {line}\n" in cli(name, "-h").out
    program, called, *arguments = shlex.split(line)
    assert (program, called) == ("gnnstab", name)
    command: click.Command = import_module(COMMANDS[name][0]).command
    command.make_context(name, arguments, obj={"debug": False})


@pytest.mark.parametrize("code", [rule.code for rule in RULES])
def test_a_page_opens_with_what_why_and_what_to_do(cli, code: str) -> None:
    opening = brief(code)
    assert [label for label, _ in opening] == ["What", "Why", "Do"]
    assert all(20 < len(sentence) < 400 and sentence[-1] in ".)" for _, sentence in opening), opening
    shown = [line for line in cli("explain", code).out.splitlines() if line.strip()]
    assert [line.split()[0] for line in shown if line[:1] != " "][:4] == ["Rule", "What", "Why", "Do"]


def test_replay_says_that_a_path_is_missing(cli) -> None:
    ran = cli("replay", "run.bundle-9")
    assert ran.code == 2
    assert ran.err.startswith("gnnstab: error: run.bundle-9: no such file or folder")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["diagnose", "a.pt", "--html", "b.html"], "no such option '--html'; write --output html=PATH\n"),
        (["explain", "--html"], "no such option '--html'\n"),
        (["diagnose", "a.pt", "--verbos"], "no such option '--verbos'; did you mean '--verbose'"),
        (["diagnose", "a.pt", "--xyz"], "no such option '--xyz'\n"),
    ],
)
def test_an_unknown_option_is_answered_with_what_comes_near_alone(cli, arguments: list[str], told: str) -> None:
    ran = cli(*arguments)
    assert ran.code == 2 and told in ran.err
