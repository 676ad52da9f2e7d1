"""``gnnstab check``."""

from __future__ import annotations

from typing import Any

import click

from . import completion, gate, options


@click.command()
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...", shell_complete=completion.files)
@options.GATE
@options.REPORT
@options.TARGET
@options.CONFIG
@options.debug
def command(targets: tuple[str, ...], **given: Any) -> int:
    """The gate for CI: diagnose and fail on findings.

    Exits 0 when nothing is at or above --fail-on, 1 on findings, 2 when a target, or a file of it, cannot be read, 3 when
    nothing could be judged, with --strict also when a part was not. With several targets the worst counts (2, then 1, then 3). No format changes the exit code.
    """
    return gate.run(targets, gate.Request.take(given, brief=True), **given)
