"""``gnnstab diagnose``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from . import gate, options, output


@click.command()
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...")
@options.TARGET
@click.option(
    "--verify", is_flag=True, help="Prove the recommended fixes on a copy of the model (needs --model and --batch)."
)
@options.GATE
@options.REPORT
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
    """What is wrong, where, why, and what to change.

    TARGET is a checkpoint (.pt .pth .ckpt .safetensors), a trace (.gnnstab), or a folder of checkpoints of one run.
    With --model and --batch the network runs, and attention, activations and gradients are seen.
    """
    chosen = gate.settings(
        config_file, isolated, fail_on=fail_on, select=select, ignore=ignore, baseline=baseline, format=format
    )
    reporting = gate.Reporting(output.parse(outputs), quiet, verbose, Path(plots) if plots else None)
    return gate.run(targets, chosen, reporting, update_baseline=update_baseline, unsafe=unsafe_load, **observe)
