"""``gnnstab rules``."""

from __future__ import annotations

import click

from . import case, options, output


@click.command()
@options.codes("--select", "Only these, e.g. GS3,GS401.")
@case.VERBOSE
@options.debug
def command(select: tuple[str, ...] | None, verbose: bool) -> int:
    """The rules: by subject, with --select one line each, with -v what each means."""
    from gnnstab.errors import UsageError
    from gnnstab.report.rule_pages import rule_list, rule_table
    from gnnstab.rules.registry import rule_classes
    from gnnstab.rules.selection import Selection

    codes = [rule.code for rule in rule_classes()]
    try:
        selection = Selection.parse(select or (), (), codes=codes)
    except UsageError as error:
        raise UsageError(f"command line: {error}") from error
    chosen = [code for code in codes if selection.includes(code)]
    terminal = output.terminal()
    output.show(rule_table(chosen, **terminal) if verbose else rule_list(chosen, by_subject=not select, **terminal))
    return 0
