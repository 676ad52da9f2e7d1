"""From a target to its diagnosis: target → facts or trace → signals → rules (→ verification) → `Diagnosis`."""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gnnstab.errors import GnnstabError, LoadError, UsageError
from gnnstab.fixes import recommend
from gnnstab.records import Coverage, Diagnosis, Signal, Signals, Target
from gnnstab.rules import advice, causes, run
from gnnstab.trace import Trace, rank_files

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import nn

PRECISIONS = ("fp32", "fp16", "bf16")

MOST_PROBED = 100
"""Checkpoints of a folder whose layers are run on synthetic graphs; a trend has enough points in these."""

MOST_LEFT_OUT = 20
"""Files of a folder that could not be read and are told by name."""

Progress = Callable[[str], None]
"""Called with what is being done now."""


def diagnose(
    target: Any,
    *,
    model: Any = None,
    batch: Any = None,
    loss: Any = None,
    optimizer: Any = None,
    precision: str = "fp32",
    heads: int | None = None,
    activation: str | None = None,
    verify: bool = False,
    jobs: int = 1,
    select: Sequence[str] | None = None,
    ignore: Sequence[str] | None = None,
    thresholds: Mapping[str, Mapping[str, float]] | None = None,
    overrides: Sequence[Any] = (),
    unsafe: bool = False,
    progress: Progress | None = None,
) -> Diagnosis:
    """Diagnose a checkpoint, a trace, a folder of checkpoints, or a model.

    Args:
        target: Path of a checkpoint (``.pt .pth .ckpt .safetensors``), of a ``.gnnstab`` trace, of a folder of
            checkpoints of one run, or an ``nn.Module``.
        model: For a checkpoint: the module it belongs to, a factory without arguments, or ``"pkg.mod:factory"``.
        batch: A ``Data``/``HeteroData``, a tuple of positional or dict of keyword arguments, an iterable of those, or
            the path of a file holding one. Makes attention, activations and gradients visible.
        loss: ``callable(output, batch) -> scalar tensor`` or ``"pkg.mod:function"``; a random linear read-out of the
            output when omitted, which the diagnosis states.
        optimizer: An optimizer of ``model`` whose state and settings are judged too. ``verify`` trains with its rate and eps;
            without one, with those of the Adam that the checkpoint holds.
        precision: ``fp32``, ``fp16`` or ``bf16``: the forward runs under autocast to it.
        heads: Number of heads where a file cannot show it.
        activation: ``relu`` or ``tanh``: activation between the layers, where a file cannot show it.
        verify: Prove every recommended fix on a copy of the model (needs a model and a batch).
        jobs: Processes of ``verify``.
        select: Code prefixes of the rules to run; all when omitted.
        ignore: Code prefixes of the rules to leave out.
        thresholds: ``{"GS301": {"warn_entropy": 0.3}}`` replaces thresholds of rules.
        overrides: Thresholds for single layers, see `gnnstab.rules.run`.
        unsafe: Allow reading files that run code from the file. Dangerous.
        progress: Called with what is being done now.

    Raises:
        LoadError: A file cannot be read, or does not fit the model.
        UsageError: The arguments ask for something impossible.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"unknown precision {precision!r}; choose from {', '.join(PRECISIONS)}")
    request = _Request(
        model, batch, loss, optimizer, precision, heads, activation, unsafe, progress or (lambda _: None)
    )
    described, signals, live = _observe(target, request)
    diagnosis = judge(described, signals, select=select, ignore=ignore, thresholds=thresholds, overrides=overrides)
    if verify:
        diagnosis = _prove(diagnosis, live, request, jobs)
    return diagnosis


def diagnose_trace(trace: Trace, *, target: Target | None = None, **options: Any) -> Diagnosis:
    """Diagnose an open trace; ``options`` as for `judge`."""
    from gnnstab.signals import from_trace

    return judge(target or Target(kind="trace", path=str(trace.path or "in memory")), from_trace(trace), **options)


def judge(
    target: Target,
    signals: Signals,
    *,
    select: Sequence[str] | None = None,
    ignore: Sequence[str] | None = None,
    thresholds: Mapping[str, Mapping[str, float]] | None = None,
    overrides: Sequence[Any] = (),
) -> Diagnosis:
    """Run the rules on signals and put everything that a report needs into a `Diagnosis`."""
    outcome = run(signals, select=select or (), ignore=ignore or (), thresholds=thresholds, overrides=overrides)
    found = causes(outcome.findings, outcome.statuses, signals)
    return Diagnosis(
        target=target,
        coverage=_coverage(signals),
        causes=recommend(found, outcome.findings, signals),
        findings=outcome.findings,
        rules=outcome.statuses,
        advice=advice(outcome.findings, signals),
        layers=signals.layers,
        signals=signals.values,
        series=signals.series,
        events=signals.events,
        context=signals.context,
    )


def _coverage(signals: Signals) -> Coverage:
    blind_layers = {b.layer for b in signals.blind if b.site in ("score", "output", "*")}
    observed = [layer for layer in signals.attention_layers if layer.name not in blind_layers]
    return Coverage(
        layers_expected=max(int(signals.context.get("layers_expected", 0)), signals.depth),
        layers_observed=len(observed),
        blind=signals.blind,
        assumptions=tuple(signals.context.get("assumptions", ())),
    )


@dataclasses.dataclass(frozen=True, slots=True)
class _Request:
    """The arguments of `diagnose` that say how to observe the target."""

    model: Any
    batch: Any
    loss: Any
    optimizer: Any
    precision: str
    heads: int | None
    activation: str | None
    unsafe: bool
    progress: Progress


@dataclasses.dataclass(frozen=True, slots=True)
class _Live:
    """A model and batch at hand, for verification."""

    model: nn.Module
    batch: Any
    loss: Any
    training: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """``lr`` and ``eps`` of the user's Adam, where they are known."""


def _observe(target: Any, request: _Request) -> tuple[Target, Signals, _Live | None]:
    """What kind of target it is, its signals, and the live model where there is one."""
    if not isinstance(target, (str, os.PathLike)):
        return _observe_model(target, request)
    path = Path(target)
    if path.is_dir() and not any(path.glob("*.gnnstab")):
        return _observe_folder(path, request)
    if path.is_dir() or is_trace(path):
        return _observe_trace(path)
    return _observe_checkpoint(path, request)


def is_trace(path: Path) -> bool:
    """True for a file that is, or claims to be, a trace, and for the stem of the traces of a distributed run."""
    if path.suffix == ".gnnstab":
        return True
    if not path.is_file():
        return not path.exists() and bool(rank_files(path))
    with path.open("rb") as stream:
        return stream.read(16) == b"SQLite format 3\x00"


def _observe_trace(path: Path) -> tuple[Target, Signals, None]:
    from gnnstab.signals import from_trace

    with Trace.open(path) as trace:
        return Target(kind="trace", path=str(path)), from_trace(trace), None


def _observe_model(model: Any, request: _Request) -> tuple[Target, Signals, _Live | None]:
    from torch import nn

    if not isinstance(model, nn.Module):
        raise UsageError(f"cannot diagnose a {type(model).__name__}; pass a path or a torch.nn.Module")
    from gnnstab.checkpoint import recover_model
    from gnnstab.signals import from_checkpoint, join

    static = from_checkpoint(recover_model(model, optimizer=request.optimizer, activation=request.activation))
    target = Target(kind="model", path=type(model).__name__)
    if request.batch is None:
        return target, static, None
    dynamic, live = _measure(model, request)
    groups = () if request.optimizer is None else request.optimizer.param_groups
    dynamic = dataclasses.replace(dynamic, values=(*dynamic.values, *_not_held(model, groups)))
    return target, join(dynamic, static), dataclasses.replace(live, training=_adam(groups))


def _observe_checkpoint(path: Path, request: _Request, *, probe: bool = True) -> tuple[Target, Signals, _Live | None]:
    """``probe`` also runs the recovered layers of a file without a model on synthetic graphs."""
    from gnnstab.checkpoint import load, load_into, recover
    from gnnstab.signals import from_checkpoint, join

    request.progress(f"reading {path.name}")
    checkpoint = load(path, unsafe=request.unsafe)
    facts = recover(checkpoint, heads=request.heads, activation=request.activation)
    static, notes = from_checkpoint(facts), tuple(checkpoint.notes)
    if request.model is None:
        if request.batch is not None or request.loss is not None:
            raise UsageError("a batch or a loss needs the model they belong to: pass --model pkg.mod:factory as well")
        synthetic = _probe_alone(facts, checkpoint, request) if probe else None
        return Target("checkpoint", str(path), notes), join(synthetic, static) if synthetic else static, None
    model = build(request.model)
    notes += tuple(load_into(model, checkpoint))
    target = Target(kind="checkpoint", path=str(path), notes=notes)
    if request.batch is None:
        return target, static, None
    dynamic, live = _measure(model, request)
    training = _adam([entry.settings for state in checkpoint.optimizers for entry in state.entries])
    return target, join(dynamic, static), dataclasses.replace(live, training=training)


def _not_held(model: nn.Module, groups: Sequence[Mapping[str, Any]]) -> tuple[Signal, ...]:
    from gnnstab.probe.places import not_held

    found = not_held(model, groups) if groups else {}
    return (Signal("place.not_held", float(found["count"]), detail=found),) if found else ()


def _adam(groups: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """``lr`` and ``eps`` of groups of the Adam family; empty where there is none, or where they differ."""
    found = {(g.get("lr"), g.get("eps")) for g in groups if g.get("betas") is not None}
    if len(found) != 1:
        return {}
    lr, eps = found.pop()
    numbers = {"lr": lr, "eps": eps}
    # A schedule that has come to its end leaves a rate of 0, with which nothing can be trained.
    return {k: float(v) for k, v in numbers.items() if isinstance(v, (int, float)) and (k == "eps" or v > 0)}


def _measure(model: nn.Module, request: _Request) -> tuple[Signals, _Live]:
    """Forward and backward of every batch on a copy of the model, through the recorder that the monitor uses."""
    from gnnstab.probe.batches import load_batch
    from gnnstab.probe.measure import measure
    from gnnstab.signals import from_trace

    batch = (
        load_batch(os.fspath(request.batch), unsafe=request.unsafe)
        if isinstance(request.batch, (str, os.PathLike))
        else request.batch
    )
    loss = resolve(request.loss) if isinstance(request.loss, str) else request.loss
    request.progress("running forward and backward")
    with measure(model, batch, loss=loss, precision=request.precision) as trace:
        return from_trace(trace), _Live(model, batch, loss)


def _probe_alone(facts: Any, checkpoint: Any, request: _Request) -> Signals | None:
    """With nothing but the file: the recovered layers on synthetic graphs."""
    from gnnstab.checkpoint import rebuild
    from gnnstab.checkpoint.threads import one_thread
    from gnnstab.probe.measure import measure_layers
    from gnnstab.signals import from_trace, renamed

    request.progress("probing the recovered layers on synthetic graphs")
    rebuilt = rebuild(facts, checkpoint)
    if not rebuilt:
        return None
    with one_thread(), measure_layers(rebuilt.model, rebuilt.batches) as trace:
        return renamed(from_trace(trace), {path: name for name, path in rebuilt.model.paths.items()})


def _observe_folder(folder: Path, request: _Request) -> tuple[Target, Signals, _Live | None]:
    from gnnstab.checkpoint import checkpoints_in
    from gnnstab.signals import Trajectory

    paths = checkpoints_in(folder)
    if not paths:
        raise LoadError(f"{folder}: no checkpoint (.pt .pth .ckpt .safetensors) and no trace in this folder")
    collected, notes = Trajectory(), _Notes()
    probed = _evenly(len(paths), MOST_PROBED)
    newest, live = -1, None
    for position, path in enumerate(paths):
        request.progress(f"{position + 1}/{len(paths)} {path.name}")
        try:
            target, signals, found = _observe_checkpoint(path, request, probe=position in probed)
        except GnnstabError as error:
            notes.leave_out(path.name, str(error))
            continue
        notes.add(path.name, target.notes)
        step = int(signals.context.get("step") or position)
        if collected.last_step is None or step >= collected.last_step:
            newest, live = position, found
        collected.add(step, signals)
    if collected.last_step is None:
        raise LoadError(f"{folder}: none of its {len(paths)} checkpoints could be read; the first: {notes.left_out[0]}")
    if newest not in probed:
        collected.add(collected.last_step, _observe_checkpoint(paths[newest], request)[1])
    if len(probed) < len(paths) and request.model is None:
        notes.add("", [f"probed on synthetic graphs: {len(probed)} of the {len(paths)} checkpoints, evenly spread"])
    return Target("checkpoint", str(folder), notes.gathered()), collected.signals(), live


def _evenly(count: int, most: int) -> frozenset[int]:
    """``most`` of the numbers below ``count`` at even distances, the first and the last among them; all when they are fewer."""
    if count <= most:
        return frozenset(range(count))
    return frozenset(round(i * (count - 1) / (most - 1)) for i in range(most))


class _Notes:
    """Notes on the files of a folder: what holds for many of them is told once."""

    def __init__(self) -> None:
        self.left_out: list[str] = []
        self._files: dict[str, list[str]] = {}

    def add(self, file: str, notes: Iterable[str]) -> None:
        for note in notes:
            self._files.setdefault(note, []).append(file)

    def leave_out(self, file: str, why: str) -> None:
        self.left_out.append(f"left out {file}: {why}")

    def gathered(self) -> tuple[str, ...]:
        more = len(self.left_out) - MOST_LEFT_OUT
        left_out = self.left_out[:MOST_LEFT_OUT] + ([f"left out {more} more"] if more > 0 else [])
        told = (
            f"{files[0]}{f' and {len(files) - 1} more' if len(files) > 1 else ''}: {note}" if files[0] else note
            for note, files in self._files.items()
        )
        return (*left_out, *told)


def _prove(diagnosis: Diagnosis, live: _Live | None, request: _Request, jobs: int) -> Diagnosis:
    if live is None:
        raise UsageError("--verify needs a model to apply the fixes to: pass --model pkg.mod:factory and --batch FILE")
    from gnnstab.verification import prove

    return prove(
        diagnosis, live.model, batch=live.batch, loss=live.loss, precision=request.precision, workers=jobs,
        progress=request.progress, **live.training,
    )  # fmt: skip


def build(model: Any) -> nn.Module:
    """The module itself, or what a factory makes.

    Raises:
        UsageError: The factory cannot be found, fails, or makes something else than a module.
    """
    from torch import nn

    if isinstance(model, nn.Module):
        return model
    name = model if isinstance(model, str) else getattr(model, "__name__", repr(model))
    factory = resolve(model) if isinstance(model, str) else model
    try:
        made = factory()
    except Exception as error:
        raise UsageError(f"the model factory {name} failed: {type(error).__name__}: {error}") from error
    if not isinstance(made, nn.Module):
        raise UsageError(f"the model factory {name} made a {type(made).__name__}, not a torch.nn.Module")
    return made


def resolve(reference: str) -> Callable[..., Any]:
    """The object behind ``"pkg.mod:name"``; the working directory is searched first.

    Raises:
        UsageError: The reference has another form, or its module or name does not exist.
    """
    module, separator, name = reference.partition(":")
    if not (module and separator and name):
        raise UsageError(f"{reference!r} is not of the form pkg.mod:name")
    try:
        with _importable_from_here():
            found: Any = importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"cannot import {module!r} for {reference!r}: {error}; run from the folder that holds it"
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise UsageError(f"module {module!r} has no {name!r}")
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(f"{reference!r} is a {type(found).__name__}, not something to call")
    return found  # type: ignore[no-any-return]


@contextmanager
def _importable_from_here() -> Iterator[None]:
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)
