"""``gnnstab replay``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import case, completion, gate, options, output

if TYPE_CHECKING:
    from gnnstab.verification.replay import Replay


@click.command()
@click.argument("target", required=False, metavar="[BUNDLE | CHECKPOINT]", shell_complete=completion.files)
@options.fixes("Try this fix; a set of first aid when omitted.")
@click.option("--model", metavar="PKG.MOD:FACTORY", help="Makes the model; a bundle holds its weights, not its code.")
@options.batch("For a checkpoint: file with the batch; a bundle has its own.")
@options.precision("For a checkpoint: run under autocast to this, fp32 when omitted; a bundle has its own.")
@case.FORMAT
@case.UNSAFE
@case.VERBOSE
@options.debug
def command(
    target: str | None,
    fixes: tuple[str, ...],
    model: str | None,
    batch: str | None,
    precision: str | None,
    format: str,
    unsafe_load: bool,
    verbose: bool,
) -> int:
    """Run a failing forward again, stage by stage, and try the fixes on it.

    BUNDLE is the folder that the monitor wrote beside its trace (run.bundle-12): weights, arguments, mode, number format
    and random numbers of the forward that failed. Or give a CHECKPOINT with --batch. Exit code 1 when a value is
    non-finite, 0 when none is.
    """
    from gnnstab.errors import UsageError
    from gnnstab.report.escape import visible
    from gnnstab.verification.wording import as_json, replay_text

    with gate.progress() as tell:
        tell("replaying")
        if target is not None and not Path(target).exists():
            raise UsageError(f"{target}: no such file or folder; a bundle stands beside its trace, as run.bundle-12")
        if target is not None and Path(target).is_dir():
            found = _of_bundle(target, model, batch, precision, fixes)
        else:
            found = _of_checkpoint(target, model, batch, precision or "fp32", fixes, unsafe=unsafe_load)
    said = "" if format == "json" else replay_text(found, width=output.terminal()["width"], verbose=verbose)
    output.show(as_json(found) if format == "json" else visible(said, newlines=True) + "\n", format)
    ran = bool(found.rows) or found.recorded is None
    return int(found.event is not None or not ran)


def _of_bundle(folder: str, model: str | None, batch: str | None, precision: str | None, fixes: Any) -> Replay:
    from gnnstab.errors import UsageError
    from gnnstab.observation import build
    from gnnstab.probe.replaying.bundle import read
    from gnnstab.verification.bundles import NEEDS_MODEL, replay_bundle, seen_in
    from gnnstab.verification.replay import FIRST_AID

    if batch is not None or precision is not None:
        raise UsageError("a bundle has its own batch and number format: leave --batch and --precision out")
    bundle = read(folder)
    if model is not None:
        return replay_bundle(bundle, build(model), fixes or FIRST_AID)
    if fixes:
        raise UsageError(NEEDS_MODEL)
    return seen_in(bundle)


def _of_checkpoint(
    path: str | None, model: str | None, batch: str | None, precision: str, fixes: Any, *, unsafe: bool
) -> Replay:
    from gnnstab.errors import UsageError
    from gnnstab.observation import is_trace
    from gnnstab.probe.batches.arguments import as_arguments
    from gnnstab.probe.batches.chosen import MOST_RUN
    from gnnstab.probe.replaying.bundle import beside
    from gnnstab.verification.replay import FIRST_AID, replay

    if path is not None and is_trace(Path(path)):
        raise UsageError(f"{path}: a trace holds no weights and no forward to replay{beside(path)}")
    if model is None or batch is None:
        raise UsageError("without a bundle a replay needs both --model pkg.mod:factory and --batch FILE")
    given = case.load(path, model, batch, None, unsafe)
    batches = as_arguments(given.batch, given.model)
    several = len(batches) > 1
    for training in (False, True):
        given.model.train(training)
        for position, (args, kwargs) in enumerate(batches[:MOST_RUN], start=1):
            try:
                found = replay(given.model, args, kwargs, precision=precision, fixes=fixes or FIRST_AID)
            except UsageError:
                if not training:
                    raise
                return replace(found, note="In evaluation mode; the forward in training mode fails.")
            if found.event is not None:
                notes = [f"Batch {position} of {len(batches)}, the first that is not finite."] if several else []
                notes += ["In training mode; in evaluation mode every stage is finite."] if training else []
                return replace(found, note=" ".join(notes))
    which = f"All {len(batches)}" if len(batches) <= MOST_RUN else f"The first {MOST_RUN} of {len(batches)}"
    return replace(found, note=f"{which} batches were run." if several else "")
