"""``gnnstab rules``."""

from __future__ import annotations

import click

from . import completion, options, output


@click.command()
@click.option(
    "--select",
    multiple=True,
    metavar="CODES",
    callback=options.prefixes,
    shell_complete=completion.codes,
    help="Only these, e.g. GS3,GS401.",
)
@options.debug
def command(select: tuple[str, ...] | None) -> int:
    """The table of rules: code, severity, name, and what it means."""
    from gnnstab.report.rule_pages import rule_table
    from gnnstab.rules.registry import rule_classes
    from gnnstab.rules.selection import Selection

    codes = [rule.code for rule in rule_classes()]
    selection = Selection.parse(select or (), (), codes=codes)
    output.show(rule_table([code for code in codes if selection.includes(code)], **output.terminal()))
    return 0
