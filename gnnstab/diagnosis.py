"""From a target to its diagnosis: target → signals → rules (→ verification) → `Diagnosis`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gnnstab.errors import UsageError
from gnnstab.evaluation import diagnose_trace as diagnose_trace
from gnnstab.evaluation import evaluate
from gnnstab.observation import Observed, Progress, Request, observe
from gnnstab.randomness import keeps_random_state
from gnnstab.records import Diagnosis

PRECISIONS = ("fp32", "fp16", "bf16")


@keeps_random_state
def diagnose(
    target: Any,
    batch: Any = None,
    *,
    model: Any = None,
    loss: Any = None,
    optimizer: Any = None,
    precision: str = "fp32",
    clip: float | None = None,
    heads: int | None = None,
    activation: str | None = None,
    verify: bool = False,
    jobs: int = 1,
    lr: float | None = None,
    select: str | Sequence[str] | None = None,
    ignore: str | Sequence[str] | None = None,
    thresholds: Mapping[str, Mapping[str, float]] | None = None,
    overrides: Sequence[Any] = (),
    unsafe: bool = False,
    progress: Progress | None = None,
) -> Diagnosis:
    """Diagnose a checkpoint, a trace, a folder of checkpoints, or a model.

    Args:
        target: Path of a checkpoint (``.pt .pth .ckpt .safetensors``), of a ``.gnnstab`` trace, of a folder of
            checkpoints of one run, or an ``nn.Module``.
        model: For a checkpoint, or to ``verify`` the fixes of a trace: the module it belongs to, a factory without arguments, or ``"pkg.mod:factory"``.
        batch: A ``Data``, ``Batch`` or ``HeteroData``, a tuple of positional or dict of keyword arguments, a list or a
            ``DataLoader`` of those (the first 128 of a list, 16 of a loader), or the path of a file holding one. Labels beside the inputs, as in
            ``(data, y)``, are for the loss. Makes attention, activations and gradients visible.
        loss: ``callable(output, batch) -> scalar tensor`` or ``"pkg.mod:function"``; a random linear read-out of the
            output when omitted, which the diagnosis states.
        optimizer: An optimizer of ``model`` whose state and settings are judged too. ``verify`` trains with one of the same class and
            settings; without one, with that of the run whose trace it is, or the rate and eps of the Adam that the checkpoint holds.
        precision: ``fp32``, ``fp16`` or ``bf16``: the forward runs under autocast to it.
        clip: Limit of the norm of all gradients, where the training has one (`clip_grad_norm_`): trial steps of the optimizer keep to it.
        heads: Number of heads where a file cannot show it.
        activation: ``relu`` or ``tanh``: activation between the layers, where a file cannot show it.
        verify: Prove every recommended fix on a copy of the model (needs a model and a batch).
        jobs: Processes of ``verify``.
        lr: Learning rate of the trainings of ``verify``; that of ``optimizer``, or of the checkpoint's Adam, when omitted, else 0.001.
        select: Code prefixes of the rules to run, ``"GS3"`` or ``["GS3", "GS5"]``; all when omitted.
        ignore: Code prefixes of the rules to leave out.
        thresholds: ``{"GS301": {"warn_entropy": 0.3}}`` replaces thresholds of rules.
        overrides: Thresholds for single layers, see `gnnstab.rules.run`.
        unsafe: Allow reading files that run code from the file. Dangerous.
        progress: Called with what is being done now.

    The model, its gradients and mode, and every random generator are left as they were.

    Raises:
        LoadError: A file cannot be read, or does not fit the model.
        UsageError: The arguments ask for something impossible.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"unknown precision {precision!r}; choose from {', '.join(PRECISIONS)}")
    if clip is not None and not clip > 0:
        raise UsageError(f"clip is the limit of the gradient's norm, a number above 0, not {clip!r}")
    if lr is not None and not (verify and 0 < lr < math.inf):
        raise UsageError(
            f"lr is the learning rate of the trainings of verify=True, a number above 0, not {lr!r}"
            + "; pass verify=True" * (not verify)
        )
    told = progress or (lambda _: None)
    request = Request(model, batch, loss, optimizer, precision, clip, heads, activation, unsafe, told)
    seen = observe(target, request)
    diagnosis = evaluate(
        seen.target, seen.signals, select=select, ignore=ignore, thresholds=thresholds, overrides=overrides
    )
    diagnosis = _undone(diagnosis, seen, request)
    return _prove(diagnosis, seen, request, jobs, lr) if verify else diagnosis


def _undone(diagnosis: Diagnosis, seen: Observed, request: Request) -> Diagnosis:
    """Where a model and a batch are at hand, what undoing each suspect shows decides."""
    live = seen.live
    if live is None:
        return diagnosis
    from gnnstab.fixes.own_lines import in_own_lines
    from gnnstab.verification.interventions import undo

    if diagnosis.target.kind == "trace":  # Its suspects were undone in the model that had been trained.
        return in_own_lines(diagnosis, live.model)
    request.progress("undoing each suspect on a copy")
    undone = undo(diagnosis, live.model, batch=live.batch, loss=live.loss, precision=request.precision)
    return in_own_lines(undone, live.model)


def _prove(diagnosis: Diagnosis, seen: Observed, request: Request, jobs: int, lr: float | None) -> Diagnosis:
    live = seen.live
    if live is None:
        raise UsageError("verify=True needs a model to apply the fixes to: pass model= and batch=")
    from gnnstab.verification import prove

    return prove(
        diagnosis, live.model, batch=live.batch, loss=live.loss, precision=request.precision, workers=jobs,
        factory=live.factory, progress=request.progress, **{**live.training, **({} if lr is None else {"lr": lr})},
    )  # fmt: skip
