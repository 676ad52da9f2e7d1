"""A small network whose first non-finite value is looked for by replaying its forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import TransformerConv

from gnnstab.probe.replaying import provenance
from gnnstab.probe.replaying.replica import ForwardInputs


def locate_non_finite(model: nn.Module, args: Any, kwargs: Any = None, step: int = 0, **more: Any) -> Any:
    return provenance.locate_non_finite(model, ForwardInputs(args, kwargs or {}, **more), step)


def located(model: nn.Module, *given: Any, **more: Any) -> Any:
    event = locate_non_finite(model, *given, **more)
    assert event is not None
    return event


def walk(model: nn.Module, args: Any, kwargs: Any = None, **more: Any) -> list[provenance.StageRow]:
    return provenance.walk(model, ForwardInputs(args, kwargs or {}, **more))[0]


class Net(nn.Module):
    """Encoder, two TransformerConvs, head; ``between`` is code that no module shows."""

    def __init__(self, between: Any = None, inplace: bool = False, **options: Any) -> None:
        super().__init__()
        self.encode = nn.Linear(4, 8)
        self.first = TransformerConv(8, 8, heads=2, concat=False, edge_dim=2, **options)
        self.second = TransformerConv(8, 8, heads=2, concat=False, edge_dim=2, **options)
        self.activation = nn.ReLU(inplace=inplace)
        self.head = nn.Linear(8, 1)
        self.between = between or (lambda h: h)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        h = self.activation(self.first(self.encode(x), edge_index, edge_attr))
        return self.head(self.activation(self.second(self.between(h), edge_index, edge_attr)))


def graph() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(12, 4), torch.randint(0, 12, (2, 40)), torch.rand(40, 2)


def net() -> Net:
    torch.manual_seed(1)
    return Net()
