"""Standardising acts on the tensor that is badly scaled, wherever it stands in the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Data, HeteroData
from torch_geometric.nn import HeteroConv, HGTConv, TransformerConv

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


class Typed(nn.Module):
    """Two kinds of nodes, from a ``HeteroData``."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = HeteroConv(
            {
                ("user", "rates", "film"): TransformerConv((8, 8), 8, edge_dim=2),
                ("film", "of", "user"): TransformerConv((8, 8), 8),
            }
        )
        self.out = nn.Linear(8, 1)

    def forward(self, data: HeteroData) -> Tensor:
        given = data.collect("edge_attr")
        return self.out(self.conv(data.x_dict, data.edge_index_dict, edge_attr_dict=given)["film"])


class Named(Typed):
    def forward(self, feats: dict[str, Tensor], edges: dict[Any, Tensor], attrs: dict[Any, Tensor]) -> Tensor:  # type: ignore[override]
        return self.out(self.conv(feats, edges, edge_attr_dict=attrs)["film"])


def typed(large: str) -> HeteroData:
    torch.manual_seed(1)
    data = HeteroData()
    for kind in ("user", "film"):
        data[kind].x = torch.randn(NODES, 8) * (3000.0 if kind == large else 1.0)
    data["user", "rates", "film"].edge_index = torch.randint(0, NODES, (2, 120))
    data["user", "rates", "film"].edge_attr = torch.randn(120, 2) * (3000.0 if large == "rates" else 1.0)
    data["film", "of", "user"].edge_index = torch.randint(0, NODES, (2, 120))
    return data


@pytest.mark.parametrize(
    ("model", "large", "written"),
    [
        (Typed(), "user", 'data["user"].x'),
        (Typed(), "rates", 'data["user", "rates", "film"].edge_attr'),
        (Named(), "user", 'feats["user"]'),
        (Named(), "rates", 'attrs["user", "rates", "film"]'),
    ],
)
def test_the_change_writes_the_tensor_as_code_does(model: Typed, large: str, written: str) -> None:
    data = typed(large)
    parts = (data.x_dict, data.edge_index_dict, data.collect("edge_attr"))
    diagnosis = gnnstab.diagnose(model, batch=parts if isinstance(model, Named) else data)
    (change,) = {f.change for c in diagnosis.causes for f in c.fixes if f.fix == "input-standardisation"}
    assert f"\n{written} = ({written} - mean) / std" in change
    place = {"data": data} if isinstance(model, Typed) and not isinstance(model, Named) else {}
    place |= {"feats": parts[0], "edges": parts[1], "attrs": parts[2]}
    exec(change, place)
    assert eval(written, place).mean(0).abs().max() < 1e-4


def test_a_kind_without_dropout_is_not_asked_for_it() -> None:
    class Relations(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv = HGTConv(8, 8, typed("none").metadata())

        def forward(self, data: HeteroData) -> Tensor:
            return self.conv(data.x_dict, data.edge_index_dict)["film"]

    diagnosis = gnnstab.diagnose(Relations(), batch=typed("none"))
    status = {rule.code: (rule.status, rule.reason) for rule in diagnosis.rules}
    assert status["GS101"] == status["GS105"] == ("not-applicable", "layers of this kind have no dropout")
    (cause,) = [c for c in diagnosis.causes if c.cause == "no-dropout"]
    assert (cause.status, cause.reason) == ("absent", "layers of this kind have no dropout")
    assert "the model" not in str(diagnosis).partition("not run")[2]
