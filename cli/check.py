"""``gnnstab check``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from . import gate, options, output


@click.command()
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...")
@options.GATE
@options.REPORT
@options.TARGET
@options.CONFIG
@options.debug
def command(
    targets: tuple[str, ...],
    fail_on: str | None,
    select: tuple[str, ...] | None,
    ignore: tuple[str, ...] | None,
    baseline: str | None,
    update_baseline: bool,
    format: str | None,
    outputs: tuple[str, ...],
    quiet: bool,
    verbose: bool,
    plots: str | None,
    config_file: str | None,
    isolated: bool,
    unsafe_load: bool,
    **observe: Any,
) -> int:
    """The gate for CI: diagnose and fail on findings.

    Exits 0 when nothing is at or above --fail-on, 1 on findings, 2 when a target cannot be read, 3 when nothing could be
    judged. With several targets the worst counts (2, then 1, then 3). No format changes the exit code.
    """
    chosen = gate.settings(
        config_file, isolated, fail_on=fail_on, select=select, ignore=ignore, baseline=baseline, format=format
    )
    reporting = gate.Reporting(output.parse(outputs), quiet, verbose, Path(plots) if plots else None)
    return gate.run(targets, chosen, reporting, update_baseline=update_baseline, unsafe=unsafe_load, **observe)
