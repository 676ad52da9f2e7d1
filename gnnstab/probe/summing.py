"""Message-passing modules that sum raw messages: found, and turned into means for a trial."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch_geometric.nn import MessagePassing
from torch_geometric.nn.resolver import aggregation_resolver

from gnnstab.layers import layer_of


def raw_sums(model: nn.Module) -> list[tuple[str, Any]]:
    """Modules without attention and without a normalisation by degree that add messages up, with their names."""
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, MessagePassing)
        and module.aggr in ("add", "sum")
        and layer_of(module) is None
        and not hasattr(module, "heads")  # Attention of a class that no adapter describes.
        and not getattr(module, "normalize", False)
    ]


def take_means(model: nn.Module) -> None:
    """Have these modules of a copy divide their sums by the in-degree."""
    for _, module in raw_sums(model):
        module.aggr, module.aggr_module = "mean", aggregation_resolver("mean")
