"""Options that several commands share, each written once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from . import completion

F = TypeVar("F", bound=Callable[..., Any])


def _set_debug(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value and isinstance(context.obj, dict):
        context.obj["debug"] = True


def debug(function: F) -> F:
    """``--debug``, also behind the command."""
    option = click.option(
        "--debug", is_flag=True, expose_value=False, callback=_set_debug, help="Show the traceback of an error."
    )
    return option(function)


def prefixes(_: click.Context, __: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...] | None:
    """``GS3,GS401`` or several options → prefixes; None when the option was not given."""
    return tuple(part.strip().upper() for text in value for part in text.split(",")) if value else None


def numbers(_: click.Context, __: click.Parameter, value: str) -> tuple[float, ...]:
    """``0.5,1,2`` → numbers."""
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is no list of numbers such as 0.5,1,2,4") from None


def _together(*options: Callable[[Any], Any]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


TARGET = _together(
    click.option("--model", metavar="PKG.MOD:FACTORY", help="Model that the checkpoint belongs to."),
    click.option("--batch", metavar="FILE", shell_complete=completion.files, help="File with one batch: makes attention and gradients visible."),
    click.option("--loss", metavar="PKG.MOD:FN", help="loss(output, batch); a stated synthetic objective when omitted."),
    click.option("--precision", type=click.Choice(["fp32", "fp16", "bf16"]), default="fp32", show_default=True,
                 help="Run the forward under autocast to this."),
    click.option("--heads", type=click.IntRange(min=1), help="Number of heads, where the file cannot show it."),
    click.option("--activation", type=click.Choice(["relu", "tanh"]), help="Activation between the layers, likewise."),
    click.option("--unsafe-load", "unsafe", is_flag=True,
                 help="DANGEROUS: allow a file to run code while it is read. Only for files you made yourself."),
)  # fmt: skip
"""What is looked at, and how."""

GATE = _together(
    click.option(
        "--fail-on", type=click.Choice(["error", "warning", "info"]), help="Lowest severity that exits 1. [warning]"
    ),
    click.option(
        "--select",
        multiple=True,
        metavar="CODES",
        callback=prefixes,
        shell_complete=completion.codes,
        help="Run only these rules, e.g. GS3,GS401.",
    ),
    click.option(
        "--ignore",
        multiple=True,
        metavar="CODES",
        callback=prefixes,
        shell_complete=completion.codes,
        help="Leave these rules out.",
    ),
    click.option("--baseline", type=click.Path(), help="File of known findings; only new ones fail."),
    click.option("--update-baseline", is_flag=True, help="Write the findings of this run to the baseline and exit 0."),
)
"""What counts."""

REPORT = _together(
    click.option(
        "--format",
        "format",
        metavar="FORMAT",
        shell_complete=completion.formats,
        help="Of standard output: text, json, sarif, junit, github, …  [text]",
    ),
    click.option(
        "--output",
        "outputs",
        multiple=True,
        metavar="FORMAT=PATH",
        shell_complete=completion.outputs,
        help="Also write a report; any number of times.",
    ),
    click.option("-q", "--quiet", is_flag=True, help="The verdict alone."),
    click.option("-v", "--verbose", is_flag=True, help="Every finding, every layer, every rule."),
    click.option("--plots", type=click.Path(file_okay=False), metavar="DIR", help="Write the figures as PNG and SVG."),
)
"""What is written, and where."""

CONFIG = _together(
    click.option("--config", "config_file", type=click.Path(), help="Read the settings from this file."),
    click.option("--isolated", is_flag=True, help="Read no configuration file."),
)
"""Which configuration holds."""
