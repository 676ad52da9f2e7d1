"""The checkpoints of one run in a folder, in order of training."""

from __future__ import annotations

import os
import re
from pathlib import Path

SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors")


def checkpoints_in(folder: str | os.PathLike[str]) -> list[Path]:
    """Files with a checkpoint's suffix directly in ``folder``, numbers in their names compared as numbers."""
    files = (path for path in Path(folder).iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    return sorted(files, key=lambda path: _natural(path.name))


def _natural(name: str) -> list[tuple[int, int, str]]:
    """A sort key under which ``step_9`` comes before ``step_10``."""
    return [
        (0, int(part), "") if part.isascii() and part.isdigit() else (1, 0, part)
        for part in re.split(r"(\d+)", name)
        if part
    ]
