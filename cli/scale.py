"""``gnnstab scale``."""

from __future__ import annotations

import click

from . import case, completion, gate, options, output


@click.command()
@click.argument("checkpoint", required=False, shell_complete=completion.files)
@click.option(
    "--factors",
    default="0.25,0.5,1,2,4,8",
    show_default=True,
    callback=options.numbers,
    help="Multiples of the in-degree.",
)
@click.option("--seeds", type=click.IntRange(min=1), default=2, show_default=True, help="Draws of edges per factor.")
@click.option("--clamping", is_flag=True, help="Compare clamping activations with the proper fixes as well.")
@click.option("--plots", type=click.Path(file_okay=False), metavar="DIR", help="Draw the curves, as PNG and SVG.")
@case.options
@case.VERBOSE
@options.debug
def command(
    checkpoint: str | None,
    factors: tuple[float, ...],
    seeds: int,
    clamping: bool,
    plots: str | None,
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
    """How the numbers grow with in-degree, and the in-degree at which each limit breaks.

    Runs at fp32, fp16 and bf16 whatever --precision says; the graphs are made from the neighbourhoods of the batch.
    """
    from gnnstab.verification.clamping import compare
    from gnnstab.verification.scaling import scale
    from gnnstab.verification.wording import as_json, scaling_text, sides_text

    given = case.load(checkpoint, model, batch, loss, unsafe=unsafe_load)
    with gate.progress() as tell:
        found = scale(
            given.model, batch=given.batch, factors=factors, seeds=seeds, workers=jobs, store=store, progress=tell
        )
        sides = (
            compare(given.model, batch=given.batch, factors=factors, factory=given.factory, progress=tell)
            if clamping
            else ()
        )
    if plots is not None:
        from gnnstab.report.figures import write_growth

        write_growth(found, plots)
    if format == "json":
        output.show(as_json({"scaling": found, "clamping": sides}), format)
    else:
        told = scaling_text(found, width=output.terminal()["width"], verbose=verbose)
        output.show("\n\n".join([*([sides_text(sides)] if sides else []), told]) + "\n")
    return 0
