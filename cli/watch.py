"""``gnnstab watch``."""

from __future__ import annotations

import click

from . import options


@click.command()
@click.argument("trace", type=click.Path())
@click.option("--once", is_flag=True, help="Print one frame and exit; so does a standard output that is no terminal.")
@click.option("--refresh", type=options.FiniteRange(min=0.1), default=1.0, show_default=True, metavar="SECONDS",
              help="Shortest time between two looks at the trace.")  # fmt: skip
@options.debug
def command(trace: str, once: bool, refresh: float) -> int:
    """Follow a run in another terminal while it trains, or look at one that has ended. q quits.

    TRACE is a .gnnstab file; of a distributed run the folder of its ranks, or their stem.
    """
    from rich.console import Console

    from gnnstab.watch import watch

    watch(trace, console=Console(), refresh=refresh, once=once)
    return 0
