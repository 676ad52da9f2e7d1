"""Parameters that have no gradient since nothing reads, or calls, what they belong to: broken programs and their repaired twins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch_geometric.data import Data, HeteroData
from torch_geometric.nn import HeteroConv, SAGEConv, TransformerConv

from gnnstab.records import Diagnosis
from test_places import BOTH, NODES, WIDTH, Net, data, look, loss, loud, seeded
from trained import trained

pytestmark = pytest.mark.filterwarnings("ignore:There exist node types")

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


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("cut", [False, True])
def test_maps_of_rows_that_are_zero_where_the_loss_reads(cut: bool) -> None:
    """Of a loss of the hidden nodes alone their query map learns its bias; where it is cut off that does not learn either."""
    model = Restored()
    if cut:
        model.out.lin_query.register_forward_hook(lambda module, args, output: output.detach())
    diagnosis = trained(model, data(), lambda output, batch: loss(output[HIDDEN], Data(y=batch.y[HIDDEN])))
    assert ["out.lin_query.weight" in f.message for f in loud(diagnosis, "GS604")] == ([True] if cut else [])


Kind = tuple[str, str, str]
READS, WRITES, CITES = ("person", "reads", "paper"), ("person", "writes", "paper"), ("paper", "cites", "paper")


def library(*kinds: Kind) -> HeteroData:
    made, g = HeteroData(), seeded(11)
    made["person"].x, made["paper"].x = torch.randn(40, 6, generator=g), torch.randn(30, 6, generator=g)
    for kind in kinds:
        made[kind].edge_index = torch.randint(0, 30, (2, 150), generator=g)
    made.y = torch.tanh(made["paper"].x[:, 0])
    return made


class Library(nn.Module):
    """Papers and who has to do with them; ``joined``: a `HeteroConv` for each layer, else dictionaries by the bare name of the relation."""

    def __init__(self, kinds: Sequence[Kind], joined: bool) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.joined, self.enter = joined, nn.ModuleDict({kind: nn.Linear(6, WIDTH) for kind in ("person", "paper")})
        made = [{kind: SAGEConv(WIDTH, WIDTH) for kind in kinds} for _ in range(2)]
        self.layers = nn.ModuleList(
            HeteroConv(own) if joined else nn.ModuleDict({kind[1]: conv for kind, conv in own.items()}) for own in made
        )
        self.out = nn.Linear(WIDTH, 1)

    def forward(self, batch: HeteroData) -> Tensor:
        x = {kind: self.enter[kind](value) for kind, value in batch.x_dict.items()}
        for layer in self.layers:
            x = {**x, "paper": x["paper"] + F.elu(self._passed(layer, x, batch))}
        return self.out(x["paper"]).squeeze(-1)

    def _passed(self, layer: Any, x: dict[str, Tensor], batch: HeteroData) -> Tensor:
        if self.joined:
            return layer(x, batch.edge_index_dict)["paper"]
        return sum(  # type: ignore[return-value]
            layer[name]((x[source], x[target]), edges)
            for (source, name, target), edges in batch.edge_index_dict.items()
            if name in layer
        )


MISSPELT = ("person", "read", "paper")


@pytest.mark.usefixtures("brief")
@BOTH
@pytest.mark.parametrize("joined", [True, False], ids=["HeteroConv", "ModuleDict"])
@pytest.mark.parametrize(
    ("keys", "held", "told"),
    [
        ((MISSPELT, CITES), (READS, CITES), True),
        ((READS, CITES), (READS, CITES), False),
        ((READS, WRITES, CITES), (READS, CITES), False),
        ((READS, CITES), (READS, WRITES, CITES), False),
        ((MISSPELT, CITES), (READS, WRITES, CITES), False),
    ],
    ids=["misspelt", "repaired", "another phase", "left out", "which one is not known"],
)
def test_a_key_that_names_no_relation_of_the_batch(
    face: Callable[..., Diagnosis], joined: bool, keys: Sequence[Kind], held: Sequence[Kind], told: bool
) -> None:
    found = loud(face(Library(keys, joined), library(*held)), "GS604")
    assert ["reads" in f.message and "read" in f.message.split("reads")[0] for f in found] == ([True] if told else [])


def test_edges_that_are_read_elsewhere_are_not_missed() -> None:
    """The layers of an unknown key may be a template where the output depends on the edges in another way."""

    class Counted(Library):
        def forward(self, batch: HeteroData) -> Tensor:
            edges = batch[READS].edge_index
            return super().forward(batch) + torch.zeros(30).index_add(0, edges[1], torch.ones(150)) / 10

    assert loud(look(Counted((MISSPELT, CITES), True), library(READS, CITES)), "GS604") == []


class Recomputed(Net):
    """The first map and the layers stand in a checkpoint; ``way``: of which kind, and what it is given."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way

    def _body(self, x: Tensor, edges: Tensor) -> Tensor:
        h = self.norm(F.relu(self.inp(x)))
        for conv in self.convs:
            h = h + F.relu(conv(h, edges))
        return h

    def forward(self, batch: Data) -> Tensor:
        x = batch.x.detach().requires_grad_() if self.way == "marked" else batch.x
        reentrant = self.way != "not reentrant"
        h = checkpoint(self._body, x, batch.edge_index, use_reentrant=reentrant)
        return self.out(self.mid(h)).squeeze(-1)


@BOTH
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("way", ["nothing has a gradient", "not reentrant", "marked", "given one"])
def test_a_reentrant_checkpoint_whose_inputs_have_no_gradient(face: Callable[..., Diagnosis], way: str) -> None:
    batch = data()
    if way == "given one":
        batch.x.requires_grad_()
    diagnosis = face(Recomputed(way), batch)
    found = loud(diagnosis, "GS604")
    broken = way == "nothing has a gradient"
    assert ["use_reentrant=True" in f.message and "inp.weight" in f.message for f in found] == [True] * broken
    assert [c.cause for c in diagnosis.root_causes()] == ["never-updated-parameter"] * broken


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("cut", [False, True])
def test_a_module_that_is_not_called_is_no_cause_of_a_run_that_died(cut: bool) -> None:
    """An output of NaN shows nothing of what it depends on: a module that no forward calls stays a note, one that is cut off an error."""
    model = Net()
    model.spare = nn.BatchNorm1d(WIDTH)  # type: ignore[assignment]
    if cut:
        model.mid.register_forward_hook(lambda module, args, output: output + model.spare(args[0]).detach())
    diagnosis = trained(model, data(), loss, steps=30, optimizer=torch.optim.SGD(model.parameters(), 1e3))
    assert "GS502" in {f.code for f in loud(diagnosis)}
    told = [f.severity for f in diagnosis.findings if f.code == "GS604" and "spare" in f.message]
    assert told == (["error"] if cut else ["info"])
