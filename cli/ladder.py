"""``gnnstab ladder``."""

from __future__ import annotations

from typing import Any

import click

from . import case, completion, gate, options


@click.command()
@click.argument("checkpoint", required=False, shell_complete=completion.files)
@click.option(
    "--train", metavar="PKG.MOD:FN", help="train(model, *, seed, **settings) -> losses; a short training when omitted."
)
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Seeds per rung.")
@case.STEPS
@case.LR
@click.option(
    "--sizes",
    default="7,10,50",
    show_default=True,
    callback=options.numbers,
    metavar="N,N,…",
    help="Agents of the final test: those of the batch, then larger graphs, on which the first stable rung is tried. One number: none.",
)
@case.OPTIONS
@options.debug
def command(checkpoint: str | None, train: str | None, format: str, verbose: bool, **given: Any) -> int:
    """Fixes added one after another: from which on is the run stable, and which did nothing?

    Every rung is built anew from fresh weights; of CHECKPOINT the rate of its optimizer counts. The first stable one is then tried on larger graphs, and the rungs above
    it where it is no longer stable. Exit code 0 when some rung is stable, else 1.
    """
    from gnnstab.observation import resolve
    from gnnstab.verification.ladder import run_ladder
    from gnnstab.verification.wording import ladder_text

    asked = case.take(checkpoint, given)
    if given["lr"] is None:
        given["lr"] = asked.training.get("lr", 1e-3)
    with gate.progress() as tell:
        found = run_ladder(
            asked.model, batch=asked.batch, loss=asked.loss, train=resolve(train) if train else None,
            factory=asked.factory, progress=tell, **given,
        )  # fmt: skip
    case.show(found, ladder_text, format, verbose)
    return 0 if found.stable_from is not None else 1
