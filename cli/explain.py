"""``gnnstab explain``."""

from __future__ import annotations

import click

from . import case, completion, options, output


@click.command()
@click.argument("name", shell_complete=completion.topics)
@case.VERBOSE
@options.debug
def command(name: str, verbose: bool) -> int:
    """What a word of a report means, why it matters, and what to do.

    NAME is a rule (code or name), a cause, a fix, a signal, a word such as entropy or
    made-worse, or nan, inf, overflow.
    """
    from gnnstab.report.topic_pages import topic_page

    output.show(topic_page(name, verbose=verbose, **output.terminal()))
    return 0
