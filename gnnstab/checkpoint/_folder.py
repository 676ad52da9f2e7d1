"""The files of a folder: checkpoints of one run in order of training, what stands beside them, and what is not read."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gnnstab.checkpoint._file_names import said
from gnnstab.checkpoint._sniffing import holds_checkpoint

SHARD = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})(?P<suffix>\.[A-Za-z]+)")
"""Name of a shard, ``model-00001-of-00002.safetensors``."""

SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors")

_HUGGING_FACE = re.compile(r"[\w.-]*model[\w.-]*\.bin", re.IGNORECASE)
"""Weights under a suffix that other files bear as well."""

_BESIDE = re.compile(
    r"((optimizer|rng_state|random_states|scheduler|lr_scheduler|scaler|training_args)(_\d+)?|\w+_optim_states)\.(pt|pth|bin|pkl)",
    re.IGNORECASE,
)
"""What Trainer and accelerate write beside the weights, and DeepSpeed, one for each rank."""

_BY_FILE_SYSTEM = re.compile(r"\._.|\.nfs[0-9a-f]{8}|\.fuse_hidden[0-9a-f]{8}|.*:Zone\.Identifier$")

MOST_BESIDE = 20
"""Files beside the weights that are read, those of optimizers first."""

MOST_LOOKED_INTO = 10_000
"""Files of a folder, and 1000 of each folder in it, of which the first bytes are read."""


@dataclass(frozen=True, slots=True)
class FolderFiles:
    """What a folder holds."""

    checkpoints: list[Path]
    """Of the folder itself, in the order that the names tell, else in that of the times they were written; the shards of one model are one, named by the first. Some may be no files."""

    beside: list[Path]
    """Optimizers, schedulers and the like of the newest of them."""

    others: list[str]
    """Names of what holds checkpoints as well and is not read: files under other names, folders."""

    foreign: list[str]
    """Names under which file systems keep what belongs to another file; these are not read."""

    by_time: list[str]
    """Names of checkpoints that tell no order: but for scores, seeds and the like they are those of others."""


def files_in(folder: str | os.PathLike[str]) -> FolderFiles:
    """What bears a checkpoint's suffix; ``.tar`` does where torch wrote it, and any name where there is none of these."""
    found = sorted(Path(folder).iterdir())
    foreign = [path for path in found if is_by_file_system(path)]
    paths = [path for path in found if path not in foreign]
    named = [path for path in paths if _named(path)]
    unnamed = [path for path in paths if not (_named(path) or _BESIDE.fullmatch(path.name))]
    held = [path for path in unnamed[:MOST_LOOKED_INTO] if holds_checkpoint(path)]
    beside = [path for path in paths if _BESIDE.fullmatch(path.name) and os.path.isfile(path)]
    files = [*named, *(path for path in held if path.suffix.lower() == ".tar")]
    networks = [path for path in files if path not in beside] or files or held
    read = sorted((p for p in beside if p not in networks), key=lambda p: not is_optimizer(p))[:MOST_BESIDE]
    folders = [f"{path.name}/" for path in unnamed if os.path.isdir(path) and _has_checkpoints(path)]
    others = [path.name for path in [*held, *beside] if path not in networks and path not in read]
    more = len(unnamed) - MOST_LOOKED_INTO
    others += [*folders, *([f"{more} more files"] if more > 0 else [])]
    checkpoints, by_time = _in_order(networks)
    return FolderFiles(checkpoints, read, others, [path.name for path in foreign], by_time)


def is_by_file_system(path: Path) -> bool:
    """True for ``._epoch_1.pt`` of macOS, ``.nfs0000…`` of NFS, ``.fuse_hidden0000…`` and ``x.pt:Zone.Identifier``; never for what holds a checkpoint."""
    return _BY_FILE_SYSTEM.match(path.name) is not None and not holds_checkpoint(path)


def is_optimizer(path: Path) -> bool:
    """True for a name under which training programs keep an optimizer's state alone."""
    return path.name.lower().startswith("optimizer") or path.stem.lower().endswith("_optim_states")


def _named(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES or _HUGGING_FACE.fullmatch(path.name) is not None


def _in_order(networks: Iterable[Path]) -> tuple[list[Path], list[str]]:
    """The checkpoints, and the names among them that tell no order."""
    names = {path: said(path.name) for path in networks}
    ordered = sorted(names, key=lambda path: (names[path].order, _written(path), names[path].plain))
    models = {(match["stem"], match["count"], match["suffix"]) if (match := SHARD.fullmatch(path.name)) else path.name: path
              for path in reversed(ordered)}  # fmt: skip
    read = list(models.values())[::-1]
    times = Counter(names[path].order for path in read)
    return read, [path.name for path in read if times[names[path].order] > 1]


def _written(path: Path) -> int:
    """When, in ns; 0 of what is not there."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _has_checkpoints(folder: Path) -> bool:
    """True where a folder below holds one, or a trace; hidden folders belong to programs, and bundles to the trace beside them."""
    if folder.name.startswith(".") or os.path.exists(folder / "event.json"):
        return False
    try:
        paths = sorted(folder.iterdir())[: MOST_LOOKED_INTO // 10]
    except OSError:
        return False
    return any(_named(p) or p.suffix == ".gnnstab" or holds_checkpoint(p) for p in paths)
