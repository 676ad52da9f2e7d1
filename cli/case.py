"""What verify, ladder, scale and, in part, replay share: a model with its weights, a batch, a loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click

from gnnstab.errors import UsageError

from . import completion

F = TypeVar("F", bound=Callable[..., Any])


class Case(NamedTuple):
    """The arguments of the functions in `gnnstab.verification`."""

    model: Any
    batch: Any
    loss: Any
    factory: Any
    """Makes the model with fresh weights."""

    training: Mapping[str, float]
    """``lr`` and ``eps`` of the Adam whose state the checkpoint holds; empty where it holds none."""


def options(function: F) -> F:
    """``--model --batch --loss --precision --seeds --steps --lr --jobs --store --format``."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


FORMAT = click.option("--format", "format", type=click.Choice(["text", "json"]), default="text", show_default=True)
VERBOSE = click.option("-v", "--verbose", is_flag=True, help="Every number, every stage, all code.")
UNSAFE = click.option("--unsafe-load", is_flag=True, help="DANGEROUS: allow a file to run code while it is read.")

_OPTIONS = (
    click.option("--model", required=True, metavar="PKG.MOD:FACTORY", help="Makes the model, with fresh weights."),
    click.option("--batch", required=True, metavar="FILE", shell_complete=completion.files, help="File with one batch."),
    click.option("--loss", metavar="PKG.MOD:FN", help="loss(output, batch); a stated synthetic task when omitted."),
    click.option("--precision", type=click.Choice(["fp32", "fp16", "bf16"]), default="fp32", show_default=True,
                 help="Run under autocast to this."),
    click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Processes."),
    click.option("--store", type=click.Path(dir_okay=False), help="Keep every finished arm here, and continue from it."),
    FORMAT,
    UNSAFE,
)  # fmt: skip


def load(checkpoint: str | None, model: str, batch: str, loss: str | None, *, unsafe: bool) -> Case:
    """Build the model, put the checkpoint's weights in, read the batch."""
    from gnnstab.checkpoint import load as read
    from gnnstab.checkpoint import load_into
    from gnnstab.observation import adam_settings, build, is_trace, resolve
    from gnnstab.probe.batches.arguments import load_batch

    factory = resolve(model)
    made, training = build(model), {}
    if checkpoint is not None:
        if not Path(checkpoint).is_file():
            raise UsageError(f"{checkpoint}: no such file")
        if is_trace(Path(checkpoint)):
            raise UsageError(
                f"{checkpoint} is a trace and holds no weights: pass a checkpoint, or none for fresh weights of the model; "
                "gnnstab diagnose --verify takes a trace with --model and --batch"
            )
        file = read(Path(checkpoint), unsafe=unsafe)
        load_into(made, file)
        training = adam_settings([entry.settings for state in file.optimizers for entry in state.entries])
    return Case(made, load_batch(batch, unsafe=unsafe), resolve(loss) if loss else None, factory, training)
