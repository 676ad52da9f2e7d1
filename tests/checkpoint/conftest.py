from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch_geometric.nn import TransformerConv

DATA = Path(__file__).parents[1] / "data" / "informarl"


@pytest.fixture
def data() -> Path:
    return DATA


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Save an object with torch and give its path."""

    def save(content: Any, name: str = "file.pt", **options: Any) -> Path:
        path = tmp_path / name
        torch.save(content, path, **options)
        return path

    return save


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    """The state dict of a network with two TransformerConvs."""
    torch.manual_seed(3)
    first = TransformerConv(8, 4, heads=3, concat=False, edge_dim=2)
    second = TransformerConv(4, 4, heads=2, concat=False, beta=True)
    tensors = {f"convs.0.{name}": tensor for name, tensor in first.state_dict().items()}
    return tensors | {f"convs.1.{name}": tensor for name, tensor in second.state_dict().items()}
