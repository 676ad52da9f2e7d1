"""Models whose tensors lie in several files, as HuggingFace's libraries write them: numbered shards and an index."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gnnstab.archive import LARGEST_PICKLE
from gnnstab.checkpoint._folder import SHARD
from gnnstab.checkpoint._naming import printable
from gnnstab.checkpoint._reading import MOST_ENTRIES
from gnnstab.checkpoint._sniffing import regular_file
from gnnstab.errors import LoadError
from gnnstab.unpickling.guard import look_first

INDEX = ".index.json"
"""How the name of an index ends: tensor → file, under ``weight_map``."""

MOST_SHARDS = 1000

MOST_SECONDS = 120
"""Processor time after which no further file of a model is begun; only descriptions are read, a thousand in some seconds."""


def shards_of(path: Path) -> list[Path]:
    """The files of the model that a shard or an index belongs to, in order; the path alone for any other name.

    Raises `LoadError` for a shard that is not there, and for an index that is none.
    """
    if path.name.endswith(INDEX):
        names = sorted(set(_weight_map(path).values()))
        if any(name in ("", "..") or Path(name).name != name for name in names) or len(names) > MOST_SHARDS:
            raise LoadError(f"{_shown(path)}: names files outside of its folder, or more than {MOST_SHARDS}")
        files = [path.with_name(name) for name in names]
        whole = _siblings(files[0])
        if len(whole) > 1 and (lacking := [file.name for file in whole if file not in files]):
            raise LoadError(
                f"{_shown(path)}: names {files[0].name} and not {lacking[0]}, which is of the same model by its name; copy index and files again"
            )
        return files
    files = _siblings(path)
    if os.path.exists(path) and (lacking := [file.name for file in files if not os.path.exists(file)]):
        raise LoadError(
            f"{_shown(path)}: is one of {len(files)} files of a model, and {printable(lacking[0], 100)} is missing; copy all of them"
        )
    return files


def _siblings(path: Path) -> list[Path]:
    """All files of the model by the name of one; raises `LoadError` for numbers that no shard has."""
    match = SHARD.fullmatch(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    if not 1 <= int(match["number"]) <= count <= MOST_SHARDS:
        raise LoadError(f"{_shown(path)}: is named as one of {count} files of a model; at most {MOST_SHARDS} are read")
    numbers = range(1, count + 1)
    return [path.with_name(f"{match['stem']}-{number:05}-of-{count:05}{match['suffix']}") for number in numbers]


def read_all(files: Sequence[Path], read: Callable[[Path], tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Kind and content of every file; what one may hold and take, all of them may together.

    Raises `LoadError` for more, and for a file that is there under two names.
    """
    found: list[tuple[str, Any]] = []
    seen: dict[tuple[int, int], str] = {}
    held, begun = 0, _seconds()
    for file in files:
        found.append(read(file))
        if len(files) == 1:
            break
        state, root = file.stat(), found[-1][1]
        if (same := seen.setdefault((state.st_dev, state.st_ino), file.name)) != file.name:
            raise LoadError(f"{_shown(file)}: is the same file as {printable(same, 100)}, another part of that model")
        held += len(root) if isinstance(root, Mapping) else 0
        if held > MOST_ENTRIES:
            raise LoadError(f"{_shown(file)}: with it the files of that model hold more than {MOST_ENTRIES} tensors")
        if len(found) < len(files) and _seconds() - begun > MOST_SECONDS:
            raise LoadError(f"{_shown(file)}: the files of that model take more than {MOST_SECONDS} seconds to read")
    return found


def joined(named: Path, files: Sequence[Path], roots: Sequence[Any]) -> dict[Any, Any]:
    """What the shards hold, as one state dict; ``named`` is the file or the index that stood for them.

    Raises `LoadError` when one is no state dict, two hold the same name, or the index names a tensor that none holds.
    """
    whole: dict[Any, Any] = {}
    for file, root in zip(files, roots, strict=True):
        if not isinstance(root, Mapping):
            raise LoadError(f"{_shown(file)}: is named as a part of a model, but holds no named tensors")
        if twice := [name for name in root if name in whole]:
            raise LoadError(
                f"{_shown(file)}: holds {printable(twice[0], 100)}, as another file of that model does; rename files that are no parts "
                "of one model"
            )
        whole.update(root)
    first = SHARD.fullmatch(files[0].name)
    index = files[0].with_name(f"{first['stem']}{first['suffix']}{INDEX}") if first else named
    index = named if named.name.endswith(INDEX) else index
    if (
        index.name.endswith(INDEX)
        and index.exists()
        and (lost := [name for name in _weight_map(index) if name not in whole])
    ):
        raise LoadError(
            f"{_shown(index)}: names {len(lost)} tensors that no file holds, first {printable(lost[0], 100)}; copy the files again"
        )
    return whole


def _seconds() -> float:
    """Processor time of this process and of the children that looked first."""
    return sum(os.times()[:4])


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor → file."""
    file, shown = regular_file(index), _shown(index)
    size = file.stat().st_size
    if size > LARGEST_PICKLE:
        raise LoadError(
            f"{shown}: has {size >> 20} MiB, more than the {LARGEST_PICKLE >> 20} MiB of an index that are read"
        )
    look_first(shown, size, lambda: _read(file, shown))
    return _read(file, shown)


def _read(file: Path, shown: str) -> dict[str, str]:
    try:
        content = json.loads(file.read_bytes())
        names = content["weight_map"]
    except (OSError, ValueError, RecursionError, TypeError, KeyError):
        raise LoadError(f"{shown}: is no index of a model's files (JSON with a weight_map)") from None
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise LoadError(f"{shown}: is no index of a model's files (its weight_map gives no files)")
    return names


def _shown(path: Path) -> str:
    return printable(str(path), 500)
