"""``gnnstab diagnose``."""

from __future__ import annotations

import os
from typing import Any

import click

from . import completion, gate, options


def _cores() -> int:
    """All of them, or as many as joblib may use."""
    return int(os.environ.get("LOKY_MAX_CPU_COUNT") or os.cpu_count() or 1)


@click.command()
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...", shell_complete=completion.files)
@options.TARGET
@click.option(
    "--verify", is_flag=True, help="Prove the recommended fixes on a copy of the model (needs --model and --batch)."
)
@click.option("--jobs", type=click.IntRange(min=1), default=_cores, show_default="all cores",
              help="Processes of --verify.")  # fmt: skip
@click.option("--lr", type=options.FiniteRange(min=0, min_open=True),
              help="Of the trainings of --verify; when omitted that of the checkpoint's Adam, else 0.001.")  # fmt: skip
@options.GATE
@options.REPORT
@options.CONFIG
@options.debug
def command(targets: tuple[str, ...], **given: Any) -> int:
    """What is wrong, where, why, and what to change.

    TARGET is a checkpoint (.pt .pth .ckpt .safetensors), a trace (.gnnstab), or a folder of checkpoints of one run.
    With --model and --batch the network runs, and attention, activations and gradients are seen; of a trace --verify tries
    the fixes on them.
    """
    return gate.run(targets, gate.Request.take(given), **given)
