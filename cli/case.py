"""What verify, ladder, scale and, in part, replay share: a model with its weights, a batch, a loss, and how results are shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click

from gnnstab.errors import UsageError

from . import options, output


class Case(NamedTuple):
    """The arguments of the functions in `gnnstab.verification`."""

    model: Any
    batch: Any
    loss: Any
    factory: Any
    """Makes the model with fresh weights."""

    training: Mapping[str, float]
    """``lr`` and ``eps`` of the Adam whose state the checkpoint holds; empty where it holds none."""


FORMAT = click.option("--format", "format", type=click.Choice(["text", "json"]), default="text", show_default=True)
VERBOSE = click.option("-v", "--verbose", is_flag=True, help="Every number, every stage, all code.")
UNSAFE = click.option("--unsafe-load", is_flag=True, help="DANGEROUS: allow a file to run code while it is read.")
STEPS = click.option(
    "--steps", type=click.IntRange(min=1), default=150, show_default=True, help="Of the short training."
)
LR = click.option(
    "--lr",
    type=options.FiniteRange(min=0, min_open=True),
    help="Of the short training; with --loss steps at it are tried; when omitted that of the checkpoint's Adam, else 0.001.",
)

OPTIONS = options.together(
    click.option("--model", required=True, metavar="PKG.MOD:FACTORY", help="Makes the model, with fresh weights."),
    options.batch(
        "File with the batches; with --loss a list of four or more, of which the second half judges.", required=True
    ),
    click.option("--loss", metavar="PKG.MOD:FN", help="loss(output, batch); a stated synthetic task when omitted."),
    options.precision("Run under autocast to this.", default="fp32", show_default=True),
    click.option("--jobs", "workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes."),
    click.option(
        "--store", type=click.Path(dir_okay=False), help="Keep every finished arm here, and continue from it."
    ),
    FORMAT,
    UNSAFE,
    VERBOSE,
)
"""``take`` uses the first of them; ``precision``, ``workers`` and ``store`` are arguments of the library's functions."""


def take(checkpoint: str | None, given: dict[str, Any]) -> Case:
    """The case that ``--model --batch --loss --unsafe-load`` name; they are taken out of ``given``."""
    names = ("model", "batch", "loss", "unsafe_load")
    return load(checkpoint, *(given.pop(name) for name in names))


def load(checkpoint: str | None, model: str, batch: str, loss: str | None, unsafe: bool) -> Case:
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
        for note in load_into(made, file):
            if " only in the " in note or " fits as well" in note:
                output.complain(f"{checkpoint}: {note}")
        training = adam_settings([entry.settings for state in file.optimizers for entry in state.entries])
    return Case(made, load_batch(batch, unsafe=unsafe), resolve(loss) if loss else None, factory, training)


def show(found: Any, text: Callable[..., str], format: str, verbose: bool) -> None:
    """Print a result as JSON, or as what ``text(found, width=…, verbose=…)`` says of it."""
    from gnnstab.report.faces import speak
    from gnnstab.verification.wording import as_json

    if format == "json":
        output.show(as_json(found), format)
    else:
        output.show(speak(text(found, width=output.terminal()["width"], verbose=verbose), "cli") + "\n")
