"""``gnnstab scale``."""

from __future__ import annotations

from typing import Any

import click

from . import case, completion, gate, options
from .group import FINDINGS


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
@case.OPTIONS
@options.debug
def command(
    checkpoint: str | None, clamping: bool, plots: str | None, precision: str, format: str, verbose: bool, **given: Any
) -> int:
    """How the numbers grow with in-degree, and the in-degree at which each limit breaks.

    Runs at fp32, fp16 and bf16 whatever --precision says; the graphs are made from the neighbourhoods of the batch, of several the
    first. A factor above 8 that makes more than 262144 edges, or is above 1024, is refused. Exit code 1 when a value is non-finite in fp32, else 0.
    """
    from gnnstab.verification.clamping import compare
    from gnnstab.verification.scaling import scale
    from gnnstab.verification.wording import scaling_text, sides_text

    asked = case.take(checkpoint, given)
    with gate.progress() as tell:
        found = scale(asked.model, batch=asked.batch, progress=tell, **given)
        compared = {"factors": given["factors"], "factory": asked.factory, "progress": tell}
        sides = compare(asked.model, batch=asked.batch, **compared) if clamping else ()
    if plots is not None:
        from gnnstab.report.figures import write_growth

        write_growth(found, plots)

    def text(shown: dict[str, Any], **options: Any) -> str:
        return "\n\n".join([*([sides_text(sides)] if sides else []), scaling_text(shown["scaling"], **options)])

    case.show({"scaling": found, "clamping": sides}, text, format, verbose)
    return FINDINGS if any(point.non_finite and point.precision == "fp32" for point in found.points) else 0
