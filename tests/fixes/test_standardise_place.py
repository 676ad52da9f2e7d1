"""Standardising acts on the tensor that is badly scaled, wherever it stands in the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import TransformerConv

import gnnstab
from gnnstab import fixes
from gnnstab.errors import FixError

NODES = 30


class Apart(nn.Module):
    """Takes its tensors one by one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.out = TransformerConv(8, 8, edge_dim=3), nn.Linear(8, 1)
        self.seen: Tensor | None = None

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        self.seen = edge_attr
        return self.out(self.conv(x, edge_index, edge_attr))


class Whole(Apart):
    def forward(self, data: Data) -> Tensor:  # type: ignore[override]
        return super().forward(data.x, data.edge_index, data.edge_attr)


def batch() -> Data:
    torch.manual_seed(1)
    edge_attr = torch.rand(120, 3) * torch.tensor([3000.0, 1.0, 1.0])
    return Data(x=torch.randn(NODES, 8), edge_index=torch.randint(0, NODES, (2, 120)), edge_attr=edge_attr)


def arguments(model: nn.Module) -> tuple[Any, ...]:
    data = batch()
    return (data,) if isinstance(model, Whole) else (data.x, data.edge_index, data.edge_attr)


@pytest.mark.parametrize("model", [Apart(), Whole()], ids=["arguments", "data"])
@pytest.mark.parametrize("named", [True, False])
def test_the_edge_features_are_standardised(model: Apart, named: bool) -> None:
    given = arguments(model)
    diagnosis = gnnstab.diagnose(model, batch=given if len(given) > 1 else given[0])
    options: dict[str, Any] = {"argument": "edge_attr"} if named else {"signals": diagnosis_signals(diagnosis)}
    copy = fixes.apply(model, "input-standardisation", batch=given if len(given) > 1 else given[0], **options)
    copy(*given)
    assert copy.seen.mean(0).abs().max() < 1e-4 and (copy.seen.std(0, unbiased=False) - 1).abs().max() < 1e-3


def diagnosis_signals(diagnosis: gnnstab.Diagnosis) -> Any:
    from gnnstab.records import Signals

    return Signals("model", diagnosis.layers, values=diagnosis.signals)


def test_a_name_that_is_not_there_is_told() -> None:
    with pytest.raises(FixError, match="hold speed"):
        fixes.apply(Whole(), "input-standardisation", batch=batch(), argument="speed")
