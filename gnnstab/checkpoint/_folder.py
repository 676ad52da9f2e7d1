"""The checkpoints of one run in a folder, in order of training."""

from __future__ import annotations

import os
import re
from pathlib import Path

SHARD = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})(?P<suffix>\.[A-Za-z]+)")
"""Name of a shard, ``model-00001-of-00002.safetensors``."""

SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors")

_HUGGING_FACE = re.compile(r"[\w.-]*model[\w.-]*\.bin", re.IGNORECASE)
"""Weights under a suffix that other files bear as well."""

_NO_NETWORK = re.compile(
    r"(rng_state|random_states|scheduler|lr_scheduler|scaler|training_args|optimizer)(_\d+)?\.(pt|pth|bin)",
    re.IGNORECASE,
)
"""What Trainer and accelerate write beside the weights."""

_OPTIMIZER = re.compile(r"optimizer(_0)?\.(pt|pth|bin)", re.IGNORECASE)


def checkpoints_in(folder: str | os.PathLike[str]) -> list[Path]:
    """What has a checkpoint's suffix directly in ``folder``, numbers in the names compared as numbers; whoever reads it finds out what is no file.

    The shards of one model are one checkpoint, named by the first; what a training program keeps beside it is none.
    """
    files = [
        path for path in Path(folder).iterdir() if path.suffix.lower() in SUFFIXES or _HUGGING_FACE.fullmatch(path.name)
    ]
    networks = [path for path in files if not _NO_NETWORK.fullmatch(path.name)] or files
    # Every second part is a number: ``step_9`` comes before ``step_10``.
    parts = {path: re.split(r"([0-9]+)", path.name) for path in networks}
    ordered = sorted(parts, key=lambda path: [int(p) if i % 2 else p for i, p in enumerate(parts[path])])
    models = {(match["stem"], match["count"], match["suffix"]) if (match := SHARD.fullmatch(path.name)) else path.name: path
              for path in reversed(ordered)}  # fmt: skip
    return list(models.values())[::-1]


def optimizer_in(folder: str | os.PathLike[str]) -> Path | None:
    """The file of an optimizer that stands beside the weights it trains, ``optimizer.pt``."""
    found = (path for path in Path(folder).iterdir() if _OPTIMIZER.fullmatch(path.name) and os.path.isfile(path))
    return min(found, default=None)
