"""``gnnstab demo``."""

from __future__ import annotations

import os
import sys
import webbrowser
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
@click.option(
    "--open/--no-open", "opened", default=None, help="Open the page in a browser; by default where there is a screen."
)
@click.option(
    "--files",
    type=click.Path(file_okay=False, path_type=Path),
    help="Only write the files that the documentation names into this folder.",
)
@options.debug
def command(folder: Path, opened: bool | None, files: Path | None) -> int:
    """A small network that blows up: recorded, diagnosed, fixed and proven, in under a minute.

    Exits with 0 when the demonstration worked, whatever it found.
    """
    if files is not None:
        return _write_files(files)
    from gnnstab import demo
    from gnnstab.report import render

    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("demo-*.gnnstab*"):
        old.unlink()
    outcome = demo.run(folder, lambda line: click.echo(f"  {line}", err=True))
    page = folder / "demo.html"
    output.write(page, render(outcome.proof, "html", face="cli"))
    output.show(render(demo.without_fixes(outcome.run), "text", face="cli", **output.terminal()))
    click.echo(f"\n{demo.summary(outcome)}")
    click.echo(f"\nThe run:  {outcome.trace}  (gnnstab diagnose {outcome.trace})\nThe page: {page.resolve()}")
    if _has_screen() if opened is None else opened:
        webbrowser.open(page.resolve().as_uri())
    return 0


def _write_files(folder: Path) -> int:
    from gnnstab import demo_files

    folder.mkdir(parents=True, exist_ok=True)
    for path in demo_files.write(folder, lambda line: click.echo(f"  {line}", err=True)):
        click.echo(path)
    return 0


def _has_screen() -> bool:
    """True at a terminal of a desktop: a browser of the terminal would take the text away, a CI job has nobody to look."""
    desktop = sys.platform in ("darwin", "win32") or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )
    return desktop and sys.stdout.isatty()
