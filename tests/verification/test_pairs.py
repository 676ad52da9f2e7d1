"""A symptom with two roots: neither suspect alone brings it back, both together do."""

import pytest
import torch
from torch import nn
from torch_geometric.nn import SimpleConv, TransformerConv

import gnnstab
from models.stacks import random_batch


class Crowd(nn.Module):
    """Adds up everybody near, or takes their mean, then attends with queries of any size."""

    def __init__(self, aggr: str, queries: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gather, self.attend = SimpleConv(aggr), TransformerConv(16, 16)
        with torch.no_grad():
            self.attend.lin_query.weight.mul_(queries)

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        return self.attend(self.gather(x, edge_index), edge_index)


@pytest.mark.parametrize("aggr", ["sum", "mean"])
def test_what_two_suspects_make_together(aggr: str) -> None:
    found = gnnstab.diagnose(Crowd(aggr, 2000.0), batch=random_batch(80, 30))
    status = {cause.cause: cause.status for cause in found.causes}
    blamed = [status.get(name, "absent") for name in ("sum-aggregation", "attention-explosion")]
    assert sorted(blamed) == (["contributing", "root-cause"] if aggr == "sum" else ["absent", "root-cause"])
    (root,) = found.root_causes()
    assert ("(alone " in root.reason) is (aggr == "sum")
    assert "100 % of the way back" in root.reason
