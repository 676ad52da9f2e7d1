"""A folder of checkpoints of one run → signals of the newest, and trends over all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from gnnstab.errors import GnnstabError, LoadError
from gnnstab.observation._files import observe_checkpoint
from gnnstab.observation._request import Observed, Request
from gnnstab.records import Signal, Signals, Target
from gnnstab.records.vocabulary import WEIGHT_NON_FINITE
from gnnstab.signals import Trajectory

MOST_PROBED = 100
"""Checkpoints of a folder whose layers are run on synthetic graphs; a trend has enough points in these."""

MOST_NAMED = 5
"""Names of files in one line."""

MOST_LEFT_OUT = 20
"""Files of a folder that could not be read and are told by name."""


def observe_folder(folder: Path, request: Request) -> Observed:
    """Raises `LoadError` when the folder holds no checkpoint, or none that can be read."""
    from gnnstab.checkpoint import files_in

    files = files_in(folder)
    paths = files.checkpoints
    if not paths:
        there = f", but in {listed(files.others, 3)}" if files.others else ""
        raise LoadError(f"{folder}: no checkpoint (.pt .pth .ckpt .safetensors) and no trace in this folder{there}")
    collected, notes, order = Trajectory(), _Notes(), _Order(files.by_time)
    run: dict[str, str] = {}
    probed = _evenly(len(paths), MOST_PROBED)
    newest, live = -1, None
    others = list(files.others)
    beside = _read_beside(files.beside, request, notes, others)
    for position, path in enumerate(paths):
        request.progress(f"{position + 1}/{len(paths)} {path.name}")
        try:
            alone = beside if len(paths) == 1 else ()
            seen = observe_checkpoint(path, request, probe=position in probed, beside=alone)
        except GnnstabError as error:
            notes.leave_out(path, error)
            continue
        _of_one_run(folder, run, path.name, seen.signals)
        notes.add(path.name, seen.target.notes)
        step, last = order.step_of(path.name, position, seen.signals)
        if last:
            newest, live = position, seen.live
        collected.add(step, seen.signals, last=last)
    if collected.last_step is None:
        raise LoadError(f"{folder}: none of its {len(paths)} checkpoints could be read; the first: {notes.left_out[0]}")
    if newest not in probed or (beside and len(paths) > 1):
        # What stands beside them is written anew at every save.
        seen = observe_checkpoint(paths[newest], request, beside=beside)
        notes.add(paths[newest].name, seen.target.notes)
        live = seen.live
        collected.add(collected.last_step, seen.signals, last=True)
    if len(probed) < len(paths) and request.model is None:
        notes.add("", [f"probed on synthetic graphs: {len(probed)} of the {len(paths)} checkpoints, evenly spread"])
    first, last_file = order.files[0], order.files[-1]
    read = (
        f"1 checkpoint as one run, {first}"
        if first == last_file
        else f"{len(order.files)} checkpoints as one run, {first} to {last_file}"
    )
    signals = order.with_others(collected.signals(), paths[newest].name, others)
    said = f"{folder}: read {read}" + order.told(paths[newest].name)
    if files.foreign:
        said += f"; passed over, as file systems write them beside files: {listed(files.foreign)}"
    if others:
        notes.add("", [f"not read, though they hold what checkpoints hold: {listed(others)}"])
    if notes.left_out:
        signals = replace(signals, context={**signals.context, "left_out": notes.unread()})
    return Observed(Target("checkpoint", str(folder), (said, *notes.gathered())), signals, live)


def _read_beside(paths: Iterable[Path], request: Request, notes: _Notes, others: list[str]) -> list[Any]:
    """The files beside the checkpoints; an optimizer that cannot be read is left out as a checkpoint is, the rest of them joins the ``others``."""
    from gnnstab.checkpoint import is_optimizer, read_beside

    found = []
    for path in paths:
        try:
            found.append(read_beside(path, unsafe=request.unsafe))
        except GnnstabError as error:
            if is_optimizer(path):
                notes.leave_out(path, error)
            else:
                others.append(path.name)
    return found


def listed(names: list[str], most: int = MOST_NAMED) -> str:
    """The first names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def passed_over(files: list[str]) -> dict[str, Any]:
    """What reports say of files that are not judged."""
    return {"files_beside": listed(files, 2), "files_beside_count": len(files)}


def _of_one_run(folder: Path, known: dict[str, str], file: str, signals: Signals) -> None:
    """Keep which file each layer was first seen in; raise `LoadError` for a file that shares no layer with those before."""
    layers = [layer.name for layer in signals.layers]
    if known and layers and not any(name in known for name in layers):
        other = next(iter(known.values()))
        raise LoadError(f"{folder}: {other} and {file} share no layer and are no run; name the files one by one")
    for name in layers:
        known.setdefault(name, file)


def _evenly(count: int, most: int) -> frozenset[int]:
    """``most`` of the numbers below ``count`` at even distances, the first and the last among them; all when they are fewer."""
    if count <= most:
        return frozenset(range(count))
    return frozenset(round(i * (count - 1) / (most - 1)) for i in range(most))


class _Place(NamedTuple):
    """Where in its training a file was written."""

    epoch: int | None
    step: int

    def before(self, other: _Place) -> bool:
        """Epochs that differ decide: some programs count steps within each."""
        if self.epoch is not None and other.epoch is not None and self.epoch != other.epoch:
            return self.epoch < other.epoch
        return self.step < other.step


def _place(signals: Signals) -> _Place | None:
    """None for a file without a step; numbers below 0 stand for none."""
    step, epoch = signals.context.get("step"), signals.context.get("progress", {}).get("epoch")
    if step is None or step < 0:
        return None
    return _Place(None if epoch is None or epoch < 0 else int(epoch), int(step))


class _Order:
    """Which file counts as the newest, and what the others hold that must not be passed over for it."""

    def __init__(self, by_time: Iterable[str]) -> None:
        self._by_time = frozenset(by_time)
        self._latest: _Place | None = None
        self._places: dict[str, _Place | None] = {}
        self._bad: dict[str, tuple[Signal, ...]] = {}
        self._within_epochs = False
        """True where steps are counted anew in each epoch, so that nothing can be followed over them."""

    def step_of(self, file: str, position: int, signals: Signals) -> tuple[int, bool]:
        """The step in the file, and whether it is the newest so far.

        Without a step, that of the files before it by name, or its place where none of them has any.
        """
        own = self._places[file] = _place(signals)
        if bad := tuple(signal for signal in signals.find(WEIGHT_NON_FINITE) if signal.value > 0):
            self._bad[file] = bad
        if own is None:
            return position if self._latest is None else self._latest.step, True
        newest = self._latest is None or not own.before(self._latest)
        self._within_epochs |= newest and self._latest is not None and own.step < self._latest.step
        self._latest = own if newest else self._latest
        return own.step, newest

    def with_others(self, newest: Signals, file: str, others: Iterable[str]) -> Signals:
        """With what else may be the last of a network: NaN and Inf of such files count, the rest of them is not seen, nor are ``others``."""
        more: dict[str | None, Signal] = {}
        for name, bad in self._bad.items():
            if name != file and not self._older(name, file, stepped=True):
                for signal in bad:
                    kept = more.setdefault(signal.layer, replace(signal, detail={**signal.detail, "files": []}))
                    kept.detail["files"].append(name)
        beside = [name for name in self._places if name != file and not self._older(name, file)] + [*others]
        context = {**newest.context, **passed_over(beside)} if beside else newest.context
        untold = self._within_epochs or self._several(file)
        series = () if untold else newest.series
        context = {**context, "trends": []} if untold else context
        return replace(newest, values=(*newest.values, *more.values()), series=series, context=context)

    def _older(self, name: str, file: str, *, stepped: bool = False) -> bool:
        """True for a file of the same training, as the names tell, that has a lower step, or, unless ``stepped``, none to tell by."""
        from gnnstab.checkpoint import said

        own, last = self._places[name], self._places[file]
        known = not stepped if own is None or last is None else own.before(last)
        return known and said(name).training == said(file).training

    def _several(self, file: str) -> bool:
        """True where names that have the words of this one tell of other trainings: seeds, folds, over which nothing can be followed."""
        from gnnstab.checkpoint import said

        own = said(file).training
        return any(other[::2] == own[::2] and other != own for other in (said(name).training for name in self._places))

    @property
    def files(self) -> list[str]:
        """Those that were read, by name."""
        return list(self._places)

    def told(self, file: str) -> str:
        """What to say of the order, ``""`` where every file has a step and nothing was passed over."""
        parts = []
        unplaced = [name for name, place in self._places.items() if place is None]
        if unplaced and len(unplaced) < len(self._places):
            parts.append(f"without a step, placed by name: {listed(unplaced)}")
        if untold := [name for name in unplaced if name in self._by_time]:
            parts.append(f"by the times of files, since names tell no order: {listed(untold)}")
        if self._several(file):
            parts.append(
                "names tell of several trainings, such as seeds or folds, of which only that of the newest is judged"
            )
        if older := [name for name in self._bad if name != file]:
            parts.append(f"NaN or Inf in {listed(older)} too")
        return "".join(f"; {part}" for part in [f"the newest is {file}", *parts]) if parts else ""


class _Notes:
    """Notes on the files of a folder: what holds for many of them is told once."""

    def __init__(self) -> None:
        self.left_out: list[str] = []
        self._files: dict[str, dict[str, None]] = {}

    def add(self, file: str, notes: Iterable[str]) -> None:
        for note in notes:
            self._files.setdefault(note, {})[file] = None

    def leave_out(self, path: Path, why: GnnstabError) -> None:
        self.left_out.append(f"left out {path.name}: {str(why).removeprefix(f'{path}: ')}")

    def unread(self) -> list[str]:
        """What to say of the files that could not be read."""
        more = len(self.left_out) - MOST_LEFT_OUT
        return self.left_out[:MOST_LEFT_OUT] + ([f"left out {more} more"] if more > 0 else [])

    def gathered(self) -> tuple[str, ...]:
        told = (
            f"{files[0]}{f' and {len(files) - 1} more' if len(files) > 1 else ''}: {note}" if files[0] else note
            for note, files in ((note, list(files)) for note, files in self._files.items())
        )
        return (*self.unread(), *told)
