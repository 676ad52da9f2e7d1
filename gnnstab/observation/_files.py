"""One checkpoint file → signals: from the file alone, or in the model that it belongs to."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gnnstab.errors import GnnstabError, LoadError, UsageError, let_through, printable
from gnnstab.observation._models import on_batch
from gnnstab.observation._references import build
from gnnstab.observation._request import Observed, Request
from gnnstab.records import Signals, Target
from gnnstab.signals import from_trace, join, renamed


def observe_checkpoint(path: Path, request: Request, *, probe: bool = True, beside: Sequence[Any] = ()) -> Observed:
    """``probe`` also runs the recovered layers of a file without a batch on synthetic graphs; ``beside`` are files that were read for it.

    Raises `LoadError` when the file cannot be read or does not fit the model, `UsageError` for a batch without a model.
    """
    try:
        return _observe(path, request, probe, beside)
    except GnnstabError:
        raise
    except Exception as error:
        if request.model is not None:
            raise  # It may be the model's own.
        let_through(error)
        why = f"{type(error).__name__}: {printable(str(error), 120)}"
        raise LoadError(f"{path}: cannot be judged ({why}, unexpected)") from error


def _observe(path: Path, request: Request, probe: bool, beside: Sequence[Any]) -> Observed:
    from gnnstab.checkpoint import informed, layers_in, load, load_into, recover
    from gnnstab.signals.weights import from_checkpoint

    request.progress(f"reading {path.name}")
    before = path.stat() if os.path.isfile(path) else None
    checkpoint = load(path, unsafe=request.unsafe, beside=beside)
    leaves = {name.rpartition(".")[2] for name in checkpoint.tensors}
    if "edge_index" in leaves and not leaves & {"weight", "bias"}:
        raise LoadError(
            f"{path}: is a batch, since it holds an edge_index and no weights; pass it with batch=, beside model="
        )
    model = None if request.model is None else build(request.model)
    checkpoint = checkpoint if model is None else informed(checkpoint, model)
    heads = request.heads or _heads(model)
    try:
        facts = recover(checkpoint, heads=heads, activation=request.activation, alone=model is None)
    except UsageError as error:
        if request.heads is not None or model is None:
            raise
        # Nobody said a number of heads: it is the model's.
        told = str(error).partition(" contradicts the file: ")[2] or str(error)
        raise LoadError(f"{path}: does not fit {type(model).__name__}, which has heads={heads}: {told}") from error
    static, notes = from_checkpoint(facts), tuple(facts.notes)
    if model is None and (request.batch is not None or request.loss is not None):
        raise UsageError("a batch or a loss needs the model they belong to: pass model= as well")
    in_model = {} if model is None or request.batch is None else layers_in(model, checkpoint)
    # A batch shows the attention of the model's layers alone; of others the file may hold, what it shows of them stands.
    unseen = replace(facts, layers=tuple(layer for layer in facts.layers if layer.name not in in_model))
    static = renamed(static, in_model)
    if probe and (unseen.layers or not in_model):
        synthetic, beyond = _probe_alone(unseen, checkpoint, request)
        static, notes = join(synthetic, static) if synthetic else static, notes + beyond
    if model is not None:
        notes += tuple(load_into(model, checkpoint))
    _refuse_changed(path, before)
    if model is None:
        return Observed(Target("checkpoint", str(path), notes), static)
    groups = [entry.settings for state in checkpoint.optimizers for entry in state.entries]
    return on_batch(Observed(Target("checkpoint", str(path), notes), static), model, request, groups)


def _refuse_changed(path: Path, before: os.stat_result | None) -> None:
    """Raise `LoadError` when a mapped file was written to meanwhile; one that was replaced whole is still mapped as it was."""
    after = path.stat() if os.path.isfile(path) else None
    if before is None or after is None or (before.st_dev, before.st_ino) != (after.st_dev, after.st_ino):
        return
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise LoadError(f"{path}: was written to while it was read; read a copy, or save to a new name and rename it")


def _heads(model: Any) -> int | None:
    """The number of heads that all attention layers of a model share, which a file alone need not show."""
    from gnnstab.layers import layer_of

    modules = [] if model is None else [m for m in model.modules() if layer_of(m) is not None]
    found = {heads for module in modules if (heads := getattr(module, "heads", None)) is not None}
    only = found.pop() if len(found) == 1 else None
    return only if isinstance(only, int) else None


def _probe_alone(facts: Any, checkpoint: Any, request: Request) -> tuple[Signals | None, tuple[str, ...]]:
    """Without a batch: the recovered layers on synthetic graphs, and a note on those that are too many or too wide."""
    from gnnstab.checkpoint import rebuild
    from gnnstab.checkpoint.threads import one_thread
    from gnnstab.probe.measure import measure_layers

    request.progress("probing the recovered layers on synthetic graphs")
    rebuilt = rebuild(facts, checkpoint, probed=True)
    beyond = rebuilt.model.beyond
    are = "layers are" if beyond != 1 else "layer is"
    notes = (f"{beyond} {are} not run on synthetic graphs: too many or too wide together",) if beyond else ()
    if not rebuilt:
        return None, notes
    with one_thread(), measure_layers(rebuilt.model, rebuilt.batches) as trace:
        return renamed(from_trace(trace), {path: name for name, path in rebuilt.model.paths.items()}), notes
