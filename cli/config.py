"""``gnnstab config``."""

from __future__ import annotations

from datetime import date

import click

from . import gate, options, output


@click.command()
@options.CONFIG
@click.option(
    "-q", "--quiet", is_flag=True, help="Print nothing; only say by the exit code whether the settings are valid."
)
@options.debug
def command(config_file: str | None, isolated: bool, quiet: bool) -> int:
    """The settings in force and where each came from.

    Exits 2 when the configuration is wrong: an unknown key, rule or threshold, or a suppression without a reason.
    """
    from gnnstab.report.escape import name, sentence

    chosen = gate.settings(config_file, isolated)
    for suppression in chosen.suppressions:
        if suppression.expired(date.today()):
            output.complain(
                f"suppression of {suppression.code} at layer {suppression.layer} expired on {suppression.expires}"
            )
    if not quiet:
        rows = [(name(key), sentence(value), name(origin, 80)) for key, value, origin in chosen.rows()]
        widths = [max(len(row[i]) for row in rows) for i in range(2)]
        output.show("".join(f"{k:<{widths[0]}}  {v:<{widths[1]}}  {o}".rstrip() + "\n" for k, v, o in rows))
    return 0
