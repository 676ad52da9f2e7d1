"""``gnnstab replay``."""

from __future__ import annotations

import click

from . import case, gate, options, output


@click.command()
@click.argument("checkpoint", required=False)
@click.option(
    "--fix", "fixes", multiple=True, metavar="NAME[:KEY=VALUE,…]", help="Try this fix; a set of first aid when omitted."
)
@case.options
@options.debug
def command(
    checkpoint: str | None,
    fixes: tuple[str, ...],
    model: str,
    batch: str,
    loss: str | None,
    precision: str,
    jobs: int,
    store: str | None,
    format: str,
    unsafe_load: bool,
) -> int:
    """Run a failing forward again, stage by stage, and try the fixes on it.

    CHECKPOINT holds the weights before the failure. Exit code 1 when a value is non-finite, 0 when none is.
    """
    from gnnstab.probe.batches import as_arguments
    from gnnstab.verification.replay import FIRST_AID, replay
    from gnnstab.verification.wording import as_json, replay_text

    given = case.load(checkpoint, model, batch, loss, unsafe=unsafe_load)
    args, kwargs = as_arguments(given.batch, given.model)[0]
    with gate.progress() as tell:
        tell("replaying")
        found = replay(given.model.eval(), args, kwargs, precision=precision, fixes=fixes or FIRST_AID)
    output.show(as_json(found) if format == "json" else replay_text(found) + "\n", format)
    return 0 if found.event is None else 1
