"""``gnnstab explain``."""

from __future__ import annotations

import click

from . import completion, options, output


@click.command()
@click.argument("code", shell_complete=completion.rules)
@options.debug
def command(code: str) -> int:
    """One rule's page: what it sees, why that is unstable, the fix, and when it is wrong. CODE is a code or a name."""
    from gnnstab.report.rule_pages import rule_page

    output.show(rule_page(code, **output.terminal()))
    return 0
