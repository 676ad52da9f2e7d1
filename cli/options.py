"""Options that several commands share, each written once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import click

from . import completion

F = TypeVar("F", bound=Callable[..., Any])


def _set_debug(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value and isinstance(context.obj, dict):
        context.obj["debug"] = True


debug = click.option(
    "--debug", is_flag=True, expose_value=False, callback=_set_debug, help="Show the traceback of an error."
)
"""Also behind the command."""


def prefixes(_: click.Context, __: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...] | None:
    """``GS3,GS401`` or several options → prefixes; None when the option was not given."""
    return tuple(part.strip().upper() for text in value for part in text.split(",")) if value else None


def numbers(_: click.Context, __: click.Parameter, value: str) -> tuple[float, ...]:
    """``0.5,1,2`` → numbers."""
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is no list of numbers such as 0.5,1,2,4") from None


class FiniteRange(click.FloatRange):
    """A range of numbers, of which NaN and ∞ are none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number; fails for one that is not finite or outside of the range."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is not finite", param, ctx)
        return number


def codes(name: str, help: str) -> Callable[[F], F]:
    """An option that takes rule codes or prefixes."""
    return click.option(
        name, multiple=True, metavar="CODES", callback=prefixes, shell_complete=completion.codes, help=help
    )


def batch(help: str, **more: Any) -> Callable[[F], F]:
    """``--batch``."""
    return click.option("--batch", metavar="FILE", shell_complete=completion.files, help=help, **more)


def fixes(help: str) -> Callable[[F], F]:
    """``--fix``, any number of times."""
    metavar = "NAME[:KEY=VALUE,…]"
    return click.option("--fix", "fixes", multiple=True, metavar=metavar, shell_complete=completion.fixes, help=help)


def precision(help: str, **more: Any) -> Callable[[F], F]:
    """``--precision``."""
    return click.option("--precision", type=click.Choice(["fp32", "fp16", "bf16"]), help=help, **more)


def together(*options: Callable[[Any], Any]) -> Callable[[F], F]:
    """Several options as one decorator, in the order of the help."""

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


TARGET = together(
    click.option("--model", metavar="PKG.MOD:FACTORY", help="Model that the checkpoint belongs to."),
    batch("File with a batch, or a list of them: makes attention and gradients visible."),
    click.option("--loss", metavar="PKG.MOD:FN", help="loss(output, batch); a stated synthetic objective when omitted."),
    precision("Run the forward under autocast to this.", default="fp32", show_default=True),
    click.option("--heads", type=click.IntRange(min=1), help="Number of heads, where the file cannot show it."),
    click.option("--activation", type=click.Choice(["relu", "tanh"]), help="Activation between the layers, likewise."),
    click.option("--unsafe-load", "unsafe", is_flag=True,
                 help="DANGEROUS: allow a file to run code while it is read. Only for files you made yourself."),
)  # fmt: skip
"""What is looked at, and how."""

GATE = together(
    click.option(
        "--fail-on", type=click.Choice(["error", "warning", "info"]), help="Lowest severity that exits 1. [warning]"
    ),
    codes("--select", "Run only these rules, e.g. GS3,GS401."),
    codes("--ignore", "Leave these rules out."),
    click.option("--baseline", type=click.Path(), help="File of known findings; only new ones fail."),
    click.option(
        "--strict", is_flag=True, help="Exit 3 where a part was not judged, as of a file without --model --batch."
    ),
    click.option("--update-baseline", is_flag=True, help="Write the findings of this run to the baseline and exit 0."),
)
"""What counts."""

REPORT = together(
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
    click.option(
        "--docs-url", metavar="URL", help="Where your built docs are served; SARIF links each rule to its page there."
    ),
    click.option("--plots", type=click.Path(file_okay=False), metavar="DIR", help="Write the figures as PNG and SVG."),
)
"""What is written, and where."""

CONFIG = together(
    click.option("--config", "config_file", type=click.Path(), help="Read the settings from this file."),
    click.option("--isolated", is_flag=True, help="Read no configuration file."),
)
"""Which configuration holds."""
