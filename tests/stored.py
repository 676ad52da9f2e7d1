"""Checkpoints that were never in a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from gnnstab.checkpoint._loading import Checkpoint


def stored(weights: nn.Module | Mapping[str, Tensor], **more: Any) -> Checkpoint:
    """The checkpoint that a file of these weights gives; ``more`` are its other fields."""
    tensors = dict(weights.state_dict() if isinstance(weights, nn.Module) else weights)
    return Checkpoint("x.pt", "torch", 0, tensors, {"": tuple(tensors)}, **more)
