"""The checkpoints of one run in a folder, in order of training."""

from __future__ import annotations

import os
import re
from pathlib import Path

SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors")


def checkpoints_in(folder: str | os.PathLike[str]) -> list[Path]:
    """Files with a checkpoint's suffix directly in ``folder``, numbers in their names compared as numbers."""
    files = (path for path in Path(folder).iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    # Every second part is a number: ``step_9`` comes before ``step_10``.
    parts = {path: re.split(r"([0-9]+)", path.name) for path in files}
    return sorted(parts, key=lambda path: [int(p) if i % 2 else p for i, p in enumerate(parts[path])])
