"""``gnnstab verify``."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from . import case, completion, gate, options, output

if TYPE_CHECKING:
    from gnnstab.verification import Verdict


@click.command()
@click.argument("checkpoint", required=False, shell_complete=completion.files)
@options.fixes("Any number of times; the recommended ones when omitted.")
@click.option("--option", "extra", multiple=True, metavar="KEY=VALUE", help="Option of the last --fix.")
@click.option("--seeds", type=click.IntRange(min=1), default=5, show_default=True, help="Paired seeds.")
@case.STEPS
@case.LR
@click.option("--export", type=click.Path(dir_okay=False), metavar="FILE",
              help="Write a repaired state dict (qk-clip alone; a new file).")  # fmt: skip
@case.OPTIONS
@options.debug
def command(
    checkpoint: str | None,
    fixes: tuple[str, ...],
    extra: tuple[str, ...],
    export: str | None,
    format: str,
    verbose: bool,
    **given: Any,
) -> int:
    """Does a fix work? Applied to a copy of your model and judged on your batch.

    CHECKPOINT holds the weights; without one the factory's own are used. Without --fix the model is diagnosed first, and
    what is recommended is tried. A small model takes about a minute for each fix; fewer --seeds or --steps
    take less and decide less often. Exit code 0 when every fix is confirmed, else 1.
    """
    from gnnstab.errors import UsageError
    from gnnstab.verification import verify

    if export is not None and os.path.lexists(export):
        raise UsageError(f"{export} exists; give a new file, gnnstab overwrites no checkpoint")
    asked = case.take(checkpoint, given)
    if given["lr"] is None:
        given["lr"] = asked.training.get("lr")
    with gate.progress() as tell:
        named = _with_options(fixes or _recommended(checkpoint, asked, given["precision"], given["lr"], tell), extra)
        found = verify(
            asked.model, named, batch=asked.batch, loss=asked.loss, eps=asked.training.get("eps"), factory=asked.factory,
            progress=tell, **given,
        )  # fmt: skip
    case.show(found, _text, format, verbose)
    if export is not None and found[-1].verdict in ("no-effect", "made-worse"):
        output.complain(f"{export} was not written: {found[-1].fix} was measured to fail ({found[-1].verdict})")
    elif export is not None:
        _export(asked, named[-1], export)
    return 0 if all(verdict.verdict == "confirmed" for verdict in found) else 1


def _text(found: Sequence[Verdict], **how: Any) -> str:
    """The verdicts in the words of the command line, which may be longer, before they are broken into lines."""
    from gnnstab.report.faces import speak
    from gnnstab.verification.wording import verdicts_text

    return verdicts_text([replace(verdict, reason=speak(verdict.reason, "cli")) for verdict in found], **how)


def _recommended(
    checkpoint: str | None, given: case.Case, precision: str, lr: float | None, tell: Callable[[str], None]
) -> tuple[str, ...]:
    """The fixes that ``gnnstab diagnose`` advises for the same file, model, batch and loss, the best of each cause first."""
    import torch

    from gnnstab.diagnosis import diagnose
    from gnnstab.errors import NothingEvaluable
    from gnnstab.report.summary import to_try

    adam = None if checkpoint or lr is None else torch.optim.Adam(given.model.parameters(), lr=lr)
    found = to_try(
        diagnose(
            checkpoint or given.model, model=given.factory if checkpoint else None, batch=given.batch, loss=given.loss,
            optimizer=adam, precision=precision, progress=tell,
        )
    )  # fmt: skip
    if not found:
        raise NothingEvaluable(
            "no fix is recommended for this model on this batch; name one with --fix (gnnstab explain CAUSE lists those of a cause)"
        )
    output.complain(f"trying the recommended {', '.join(found)}", "note")
    return found


def _with_options(fixes: tuple[str, ...], extra: tuple[str, ...]) -> list[str]:
    """The fixes as texts, with the options of ``--option`` on the last one."""
    name, _, inner = fixes[-1].partition(":")
    joined = ",".join([*([inner] if inner else []), *extra])
    return [*fixes[:-1], f"{name}:{joined}" if joined else name]


def _export(given: case.Case, name: str, path: str) -> None:
    from gnnstab.fixes import export
    from gnnstab.observation import measured_signals
    from gnnstab.verification.fix_spec import fix_specs

    item = fix_specs(name)[0]
    export(given.model, item.fix, path, signals=measured_signals(given.model, given.batch), **item.options)
