"""``gnnstab compare``."""

from __future__ import annotations

import re
from typing import Any

import click

from . import case, completion, gate, options, output
from .group import ERROR, FINDINGS


class Factor(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """``2x``, ``2×`` or ``1.5``."""

    name = "factor"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The factor; more than 1."""
        match = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*[x×]?", str(value).strip())
        if not match or float(match[1]) <= 1:
            self.fail(f"{value!r} is no factor above 1, such as 2x", param, ctx)
        return float(match[1])


@click.command()
@click.argument("before", shell_complete=completion.files)
@click.argument("after", shell_complete=completion.files)
@click.option(
    "--fail-on-growth",
    "factor",
    type=Factor(),
    metavar="FACTOR",
    help="Exit 1 when a number grew by this, e.g. 2x, or a layer is gone.",
)
@case.FORMAT
@click.option("-v", "--verbose", is_flag=True, help="Every number that grew, head by head.")
@options.TARGET
@options.CONFIG
@options.debug
def command(
    before: str,
    after: str,
    factor: float | None,
    format: str,
    verbose: bool,
    config_file: str | None,
    isolated: bool,
    **observe: Any,
) -> int:
    """Two checkpoints or traces of one network: what grew, by how much, and which limit it approaches."""
    from gnnstab.compare import compare, render
    from gnnstab.diagnosis import diagnose

    chosen = gate.settings(config_file, isolated)
    with gate.progress() as tell:
        first, second = (
            diagnose(target, thresholds=chosen.thresholds or None, progress=tell, **observe)
            for target in (before, after)
        )
    comparison = compare(first, second, thresholds=chosen.thresholds)
    output.show(render(comparison, format, factor=factor, verbose=verbose, **output.terminal()), format)
    if output.complain_of_unread([first, second]):
        return ERROR
    # Of a layer that is gone nobody knows how it grew.
    return FINDINGS if factor is not None and (comparison.grown(factor) or comparison.only_before) else 0
