"""``gnnstab ladder``."""

from __future__ import annotations

import click

from . import case, gate, options, output


@click.command()
@click.option(
    "--train", metavar="PKG.MOD:FN", help="train(model, *, seed, **settings) -> losses; a short training when omitted."
)
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Seeds per rung.")
@click.option("--steps", type=click.IntRange(min=1), default=150, show_default=True, help="Of the short training.")
@click.option("--lr", type=float, default=1e-3, show_default=True, help="Of the short training.")
@click.option(
    "--sizes",
    default="7,10,50",
    show_default=True,
    callback=options.numbers,
    metavar="N,N,…",
    help="Agents of the final test: those of the batch, then larger graphs, on which the first stable rung is tried. One number: none.",
)
@case.options
@case.VERBOSE
@options.debug
def command(
    train: str | None,
    seeds: int,
    steps: int,
    lr: float,
    sizes: tuple[float, ...],
    model: str,
    batch: str,
    loss: str | None,
    precision: str,
    jobs: int,
    store: str | None,
    format: str,
    unsafe_load: bool,
    verbose: bool,
) -> int:
    """Fixes added one after another: from which on is the run stable, and which did nothing?

    Every rung is built anew from fresh weights. The first stable one is then tried on larger graphs, and the rungs above
    it where it is no longer stable. Exit code 0 when some rung is stable, else 1.
    """
    from gnnstab.observation import resolve
    from gnnstab.verification.ladder import run_ladder
    from gnnstab.verification.wording import as_json, ladder_text

    given = case.load(None, model, batch, loss, unsafe=unsafe_load)
    with gate.progress() as tell:
        found = run_ladder(
            given.model, batch=given.batch, loss=given.loss, train=resolve(train) if train else None, seeds=seeds,
            steps=steps, precision=precision, lr=lr, sizes=sizes, factory=given.factory, workers=jobs, store=store, progress=tell,
        )  # fmt: skip
    if format == "json":
        output.show(as_json(found), format)
    else:
        output.show(ladder_text(found, width=output.terminal()["width"], verbose=verbose) + "\n")
    return 0 if found.stable_from is not None else 1
