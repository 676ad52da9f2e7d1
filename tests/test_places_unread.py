"""Parameters that have no gradient since nothing reads, or calls, what they belong to: broken programs and their repaired twins."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.nn import TransformerConv

from test_places import NODES, WIDTH, Net, data, loss, loud, seeded
from trained import trained

HIDDEN = torch.rand(NODES, generator=seeded(3)) < 0.5


class Restored(Net):
    """The last layer is given zeros at the hidden nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.out = TransformerConv(WIDTH, 1)  # type: ignore[assignment]

    def forward(self, batch: Data) -> Tensor:
        h = self.norm(F.relu(self.inp(batch.x)))
        for conv in self.convs:
            h = h + F.relu(conv(h, batch.edge_index))
        return self.out(self.mid(h).masked_fill(HIDDEN[:, None], 0.0), batch.edge_index).squeeze(-1)


@pytest.mark.parametrize("cut", [False, True])
def test_maps_of_rows_that_are_zero_where_the_loss_reads(cut: bool) -> None:
    """Of a loss of the hidden nodes alone their query map learns its bias; where it is cut off that does not learn either."""
    model = Restored()
    if cut:
        model.out.lin_query.register_forward_hook(lambda module, args, output: output.detach())
    diagnosis = trained(model, data(), lambda output, batch: loss(output[HIDDEN], Data(y=batch.y[HIDDEN])))
    assert ["out.lin_query.weight" in f.message for f in loud(diagnosis, "GS604")] == ([True] if cut else [])
