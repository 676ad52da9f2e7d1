"""``gnnstab demo``."""

from __future__ import annotations

import itertools
import os
import shlex
import sys
import textwrap
import webbrowser
from pathlib import Path

import click

from . import case, options, output


@click.command()
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("gnnstab-demo"),
    show_default=True,
    help="Where the recorded run and the page go; a new one beside it when it holds anything.",
)
@click.option(
    "--open/--no-open", "opened", default=None, help="Open the page in a browser; by default where there is a screen."
)
@click.option(
    "--files",
    type=click.Path(file_okay=False, path_type=Path),
    help="Only write the files that the documentation names into this folder.",
)
@case.VERBOSE
@options.debug
def command(folder: Path, opened: bool | None, files: Path | None, verbose: bool) -> int:
    """A small network that blows up: recorded, diagnosed, fixed and proven.

    Exits with 0 when the demonstration worked, whatever it found.
    """
    if files is not None:
        return _write_files(files)
    from gnnstab import demo
    from gnnstab.report import render
    from gnnstab.report.summary import verdict

    folder = _fresh(folder)
    outcome = demo.run(folder, lambda line: click.echo(f"  {line}", err=True))
    page = folder / "demo.html"
    output.write(page, render(outcome.proof, "html", face="cli"))
    if verbose:
        output.show(render(demo.without_fixes(outcome.run), "text", face="cli", verbose=True, **output.terminal()))
        told = [demo.verdicts(outcome)]
    else:
        told = [_labelled(f"{verdict(outcome.run)[0]}  ", str(outcome.trace))]
        told += [_entry(label, text, _ROWS.get(label, 1)) for label, text in demo.summary(outcome)]
    if code := textwrap.indent(demo.change(outcome), " " * _LABEL):
        told.append(_labelled("change", code[_LABEL:]))
    click.echo("\n".join([*told, _labelled("the run", f"gnnstab diagnose {outcome.trace}")]))
    # A path is for copying: it stands whole in its line.
    click.echo(_labelled("the page", str(page.resolve())) + "\n" + textwrap.fill(demo.closing(outcome), 80))
    if _has_screen() if opened is None else opened:
        webbrowser.open(page.resolve().as_uri())
    return 0


def _fresh(folder: Path) -> Path:
    """The folder, made; one beside it with a number where it holds anything already: nothing of anybody's is replaced."""
    from gnnstab.errors import UsageError

    names = itertools.chain([folder], (folder.with_name(f"{folder.name}-{n}") for n in itertools.count(2)))
    for name in names if folder.name else [folder]:
        try:
            name.mkdir(parents=True, exist_ok=True)
            if next(name.iterdir(), None) is None:
                return name
        except FileExistsError:
            continue  # A file or a link to nothing.
        except OSError as error:
            raise UsageError(f"cannot write into {name}: {error.strerror or error}") from error
    raise UsageError("the demonstration needs a folder of its own: name one with --folder")


def _labelled(label: str, text: str) -> str:
    return f"{label:<{_LABEL}}{text}".rstrip()


def _entry(label: str, text: str, rows: int) -> str:
    """A label and at most so many lines of text beside it."""
    return textwrap.fill(
        text, 80, initial_indent=f"{label:<{_LABEL}}", subsequent_indent=" " * _LABEL, max_lines=rows, placeholder=" …",
        break_on_hyphens=False,
    )  # fmt: skip


_ROWS = {"warned": 2, "confirmed": 2, "others": 2}
"""Entries that may take more than a line."""

_LABEL = 10
"""Columns of the labels at the left."""


def _write_files(folder: Path) -> int:
    from gnnstab import demo_files

    folder.mkdir(parents=True, exist_ok=True)
    for path in demo_files.write(folder, lambda line: click.echo(f"  {line}", err=True)):
        click.echo(path)
    here = "" if folder == Path() else f"cd {shlex.quote(str(folder))}; "
    click.echo(f"  next: {here}gnnstab diagnose crash.pt", err=True)
    return 0


def _has_screen() -> bool:
    """True at a terminal of a desktop: a browser of the terminal would take the text away, a CI job has nobody to look."""
    desktop = sys.platform in ("darwin", "win32") or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )
    return desktop and sys.stdout.isatty()
