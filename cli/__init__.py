"""The command line: one file per command, no logic of its own."""

from .group import main as main

COMMANDS: dict[str, tuple[str, str]] = {
    "diagnose": ("gnnstab.cli.diagnose", "What is wrong, where, why, and what to change."),
    "check": ("gnnstab.cli.check", "The gate for CI: diagnose and fail on findings."),
    "compare": ("gnnstab.cli.compare", "Two checkpoints or traces: what grew, and towards which limit."),
    "verify": ("gnnstab.cli.verify", "Does a fix work? Judged on a copy of your model."),
    "ladder": ("gnnstab.cli.ladder", "Fixes added one after another: from which on is the run stable?"),
    "scale": ("gnnstab.cli.scale", "What grows with in-degree, and where each limit breaks."),
    "replay": ("gnnstab.cli.replay", "A failing forward, stage by stage, and the fixes tried on it."),
    "watch": ("gnnstab.cli.watch", "A live view of a run in another terminal."),
    "rules": ("gnnstab.cli.rules", "The table of rules."),
    "explain": ("gnnstab.cli.explain", "What a rule, a cause, a fix or a signal is."),
    "demo": ("gnnstab.cli.demo", "A small network that blows up: recorded, diagnosed, fixed and proven."),
    "config": ("gnnstab.cli.config", "The settings in force and where each came from."),
}
"""Command → module that holds ``command``, imported when the command runs, and its line in ``gnnstab --help``."""
