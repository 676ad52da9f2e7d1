"""``gnnstab demo``."""

from __future__ import annotations

from pathlib import Path

import click

from . import options, output


@click.command()
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("gnnstab-demo"),
    show_default=True,
    help="Where the recorded run and the page go.",
)
@options.debug
def command(folder: Path) -> int:
    """A small network that blows up: recorded, diagnosed, fixed and proven, in under a minute.

    Exits with 0 when the demonstration worked, whatever it found.
    """
    from gnnstab import demo
    from gnnstab.report import render

    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("demo-*.gnnstab*"):
        old.unlink()
    outcome = demo.run(folder, lambda line: click.echo(f"  {line}", err=True))
    page = folder / "report.html"
    output.write(page, render(outcome.proof, "html"))
    output.show(render(outcome.run, "text", **output.terminal()))
    click.echo(demo.summary(outcome))
    click.echo(f"\nThe run:  {outcome.trace}  (gnnstab diagnose {outcome.trace})\nThe page: {page.resolve()}")
    return 0
