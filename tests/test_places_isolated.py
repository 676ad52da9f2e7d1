"""Nodes without incoming edges: an answer that nothing moves, or a path of their own; broken programs and their repaired twins."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data, HeteroData
from torch_geometric.nn import GATConv, GATv2Conv, HeteroConv, HGTConv, TransformerConv

import gnnstab
from gnnstab.probe.places._constant_rows import _unreached
from gnnstab.records import Finding
from test_places import NODES, WIDTH, Net, data, look, loud, random_graph, seeded
from test_places_gradient import FACES, Face, one
from trained import trained


class OneWay(nn.Module):
    def __init__(self, loops: bool) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.convs = nn.ModuleList([GATConv(8, 8, add_self_loops=loops) for _ in range(2)])
        self.out = nn.Linear(8, 1)

    def forward(self, batch: Data) -> Tensor:
        h = batch.x
        for conv in self.convs:
            h = F.elu(conv(h, batch.edge_index))
        return self.out(h).squeeze(-1)


@FACES
def test_edges_that_lead_away_from_every_node_with_an_answer(face: Face) -> None:
    """Ten hubs hear of all others, which hear of nobody."""
    source = torch.arange(10, NODES).repeat(3)
    edges = torch.stack([source, torch.randint(0, 10, source.shape, generator=seeded(3))])
    finding = one(face(OneWay(False), data(edge_index=edges)), "GS402")
    assert finding.cause == "isolated-nodes" and "reverse" in finding.message
    assert loud(face(OneWay(True), data(edge_index=edges))) == []


@FACES
def test_some_nodes_that_nobody_points_to(face: Face) -> None:
    """The others hear of them and differ from each other; what counts is whose answer the loss asks for."""
    target = torch.arange(12, NODES).repeat(4)
    edges = torch.stack([torch.randint(0, NODES, target.shape, generator=seeded(3)), target])
    finding = one(face(OneWay(False), data(edge_index=edges)), "GS402")
    assert finding.signal == "place.constant_rows" and finding.value == pytest.approx(12 / NODES)
    assert "whatever the batch holds, since convs.0, convs.1 have no term" in finding.message
    assert loud(face(OneWay(True), data(edge_index=edges))) == []
    answered = data(edge_index=edges, read=torch.arange(12, NODES), y=torch.randn(NODES - 12, generator=seeded(6)))
    assert loud(face(Answering(False), answered)) == []
    asked = data(edge_index=edges, read=torch.arange(18), y=torch.randn(18, generator=seeded(6)))
    finding = one(face(Answering(False), asked), "GS402")
    assert finding.value == pytest.approx(12 / 18) and "rows of the output are about such nodes" in finding.message
    assert loud(face(Answering(True), asked)) == []


class Answering(OneWay):
    """For some of the nodes."""

    def forward(self, batch: Data) -> Tensor:
        return super().forward(batch).index_select(0, batch.read)


class Towards(nn.Module):
    """Users are told what they bought; with a path for their own features or without."""

    def __init__(self, own: bool) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.conv = HeteroConv({("item", "of", "user"): GATv2Conv((8, 8), 8, add_self_loops=False)})
        self.lin, self.out, self.own = nn.Linear(8, 8), nn.Linear(8, 1), own

    def forward(self, batch: HeteroData) -> Tensor:
        h = self.conv(batch.x_dict, batch.edge_index_dict)["user"].relu()
        return self.out(h + self.lin(batch["user"].x) if self.own else h).squeeze(-1)


@pytest.mark.filterwarnings("ignore:There exist node types")
def test_nodes_of_one_kind_that_nobody_points_to() -> None:
    batch = HeteroData()
    batch["user"].x, batch["item"].x = torch.randn(NODES, 8), torch.randn(NODES + 3, 8)
    batch["item", "of", "user"].edge_index = torch.stack([torch.arange(12), torch.arange(12) % 6])
    batch["user"].y = torch.randn(NODES)

    def squared(output: Tensor, given: HeteroData) -> Tensor:
        return F.mse_loss(output, given["user"].y)

    finding = one(look(Towards(False), batch, loss=squared), "GS402")
    assert "user" in finding.message and finding.value == pytest.approx(1 - 6 / NODES)
    assert loud(look(Towards(True), batch, loss=squared)) == []


def test_isolated_nodes_of_a_layer_whose_message_is_dropped() -> None:
    """Its zeros are nobody's: the cause is that nothing reads the layer."""

    class Dropped(Net):
        def __init__(self) -> None:
            super().__init__()
            self.hop = TransformerConv(WIDTH, WIDTH, root_weight=False)

        def forward(self, batch: Data) -> Tensor:
            h = self.inp(batch.x)
            h = h + 0.0 * self.hop(h.detach(), batch.edge_index).detach() + F.relu(self.convs[0](h, batch.edge_index))
            return self.out(h).squeeze(-1)

    edges = random_graph()
    assert loud(look(Dropped(), data(edge_index=edges[:, edges[1] > 0])), "GS402") == []


@FACES
def test_an_answer_that_nothing_moves_at_nodes_with_neighbours_either(face: Face) -> None:
    """Behind ReLUs that are all closed every node answers alike, and edges would change nothing."""

    class Closed(OneWay):
        def forward(self, batch: Data) -> Tensor:
            h = torch.tanh(self.convs[0](batch.x, batch.edge_index))
            return self.out(F.relu(self.convs[1].lin(h) - 9.0)).squeeze(-1)

    edges = random_graph()
    batch = data(edge_index=edges[:, edges[1] > NODES // 4])
    diagnosis = face(Closed(True), batch)
    assert loud(diagnosis, "GS402") == [] and one(diagnosis, "GS701").explained_by != "GS402"


def test_isolated_nodes_that_nothing_reads() -> None:
    class Hubs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.out = TransformerConv(8, WIDTH, root_weight=False), nn.Linear(WIDTH, 1)

        def forward(self, batch: Data) -> Tensor:
            return self.out(self.conv(batch.x, batch.edge_index))[batch.read].squeeze(-1)

    source = torch.arange(10, NODES).repeat(3)
    edges = torch.stack([source, torch.arange(len(source)) % 10])
    read = data(edge_index=edges, read=torch.arange(10), y=torch.randn(10, generator=seeded(6)))
    everyone = data(edge_index=edges, read=torch.arange(NODES))
    assert loud(look(Hubs(), read), "GS402") == []
    assert [f.severity for f in loud(look(Hubs(), everyone), "GS402")] == ["error"]


@pytest.mark.parametrize(("dtype", "expected"), [(torch.bool, None), (torch.long, [True, False, True, True])])
def test_a_mask_of_two_sets_is_no_list_of_edges(dtype: torch.dtype, expected: list[bool] | None) -> None:
    found = _unreached({"x": torch.randn(4, 3), "second": torch.ones(2, 5, dtype=dtype)}, "", 4)
    assert (None if found is None else found.tolist()) == expected


class BothWays(nn.Module):
    """Users keep their own features around layers that are to bring them what they bought."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.conv = HGTConv({"user": 8, "item": 8}, 8, (["user", "item"], [_BOUGHT, _BOUGHT_BY]), heads=2)
        self.lin, self.out = nn.Linear(8, 8), nn.Linear(8, 1)

    def forward(self, batch: HeteroData) -> Tensor:
        heard = self.conv(batch.x_dict, batch.edge_index_dict)["user"]
        return self.out(self.lin(batch["user"].x) + heard).squeeze(-1)


_BOUGHT, _BOUGHT_BY = ("user", "bought", "item"), ("item", "of", "user")


@FACES
def test_relations_that_all_lead_away_from_what_the_loss_reads(face: Face) -> None:
    def shop(*relations: tuple[str, str, str]) -> HeteroData:
        batch, generator = HeteroData(), seeded(3)
        batch["user"].x, batch["item"].x = torch.randn(NODES, 8), torch.randn(NODES + 3, 8)
        bought = torch.stack([torch.randint(0, NODES, (200,), generator=generator) for _ in range(2)])
        for relation in relations:
            batch[relation].edge_index = bought if relation == _BOUGHT else bought.flip(0)
        batch.y = torch.randn(NODES, generator=generator)
        return batch

    diagnosis = face(BothWays(), shop(_BOUGHT))
    finding = one(diagnosis, "GS402")
    assert finding.severity == "warning" and "among them 100 % of those that the loss reads" in finding.message
    assert "(every user)" in finding.message
    assert {f.explained_by for f in loud(diagnosis, "GS604")} <= {"GS402"}
    assert loud(face(BothWays(), shop(_BOUGHT, _BOUGHT_BY))) == []


class Fans(nn.Module):
    """Scores of pairs; everybody is told by a table, or by nothing."""

    def __init__(self, told: float, hetero: bool) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.told, self.out = told, nn.Linear(16, 1)
        self.tables = nn.ModuleDict({kind: nn.Embedding(NODES, 8) for kind in ("user", "item")})
        ends = (["user", "item"], [_BOUGHT, _BOUGHT_BY])
        each = {relation: GATv2Conv(8, 8, add_self_loops=False) for relation in ends[1]}
        self.conv = HeteroConv(each) if hetero else HGTConv(8, 8, ends, heads=2)

    def forward(self, batch: Data) -> Tensor:
        x = {kind: 1 + self.told * table.weight for kind, table in self.tables.items()}
        h = self.conv(x, {_BOUGHT: batch.seen, _BOUGHT_BY: batch.seen.flip(0)})
        return self.out(torch.cat([h["user"][batch.u], h["item"][batch.i]], 1)).squeeze(-1)


@FACES
@pytest.mark.parametrize("hetero", [False, True], ids=["HGTConv", "HeteroConv"])
def test_pairs_of_nodes_that_nothing_tells_apart(face: Face, hetero: bool) -> None:
    seen, u, i = (torch.randint(0, NODES, shape, generator=seeded(3)) for shape in ((2, 60), (90,), (90,)))
    batch = Data(seen=seen, u=u, i=i, y=torch.randn(90, generator=seeded(6)), num_nodes=NODES)
    finding = one(face(Fans(0.0, hetero), batch), "GS704")
    assert finding.cause == "indistinguishable-nodes" and finding.message.startswith("what conv is given is the same")
    assert loud(face(Fans(1.0, hetero), batch)) == []
    zeros = Fans(1.0, hetero)
    for table in zeros.tables.values():
        nn.init.zeros_(table.weight)  # Its gradient tells them apart after the first update.
    assert loud(face(zeros, batch)) == []


class Kinds(nn.Module):
    """Nodes that are known by their kind alone, with a skip around each layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.kind, self.out = nn.Embedding(4, 8), nn.Linear(8, 1)
        self.convs = nn.ModuleList(GATv2Conv(8, 8, add_self_loops=False, residual=True) for _ in range(2))

    def forward(self, batch: Data) -> Tensor:
        h = self.kind(batch.z)
        for conv in self.convs:
            h = torch.tanh(conv(h, batch.edge_index))
        return self.out(h).squeeze(-1)


@FACES
def test_a_cut_off_that_leaves_most_nodes_alone(face: Face) -> None:
    kinds = torch.randint(0, 4, (NODES,), generator=seeded(5))
    few = torch.stack([torch.arange(4), torch.arange(1, 5)])
    answers = torch.randn(NODES, generator=seeded(6))
    finding = one(face(Kinds(), Data(z=kinds, edge_index=few, y=answers, num_nodes=NODES)), "GS402")
    assert finding.severity == "warning" and finding.cause == "isolated-nodes"
    enough = Data(z=kinds, edge_index=random_graph(), y=answers, num_nodes=NODES)
    assert loud(face(Kinds(), enough), "GS402") == []


class Slots(nn.Module):
    """The players of complete graphs, told apart by the row of a table that each looks up."""

    def __init__(self, row: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.slot, self.plan, self.row = nn.Embedding(5, WIDTH), nn.Linear(4, WIDTH), row
        self.conv, self.out = GATConv(WIDTH, WIDTH), nn.Linear(WIDTH, 1)

    def forward(self, plan: Tensor, edge_index: Tensor) -> Tensor:
        node = torch.arange(5 * len(plan))
        h = F.elu(self.slot(self.row(node)) + self.plan(plan)[node // 5])
        return self.out(h + F.elu(self.conv(h, edge_index))).squeeze(-1)


def games(differ: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    plan, one = torch.randn(12, 4, generator=seeded(6)), (1 - torch.eye(5)).nonzero().t()
    y = plan @ torch.randn(4, 5, generator=seeded(7))
    y = y.flatten() if differ else plan.mean(1).repeat_interleave(5)
    return plan, torch.cat([one + 5 * k for k in range(12)], 1), y


def test_slots_that_all_look_up_one_row() -> None:
    def squares(output: Tensor, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        return F.mse_loss(output, batch[2])

    def said(row: Callable[[Tensor], Tensor], differ: bool = True) -> list[Finding]:
        return loud(gnnstab.diagnose(Slots(row), batch=games(differ), loss=squares), "GS704")

    (finding,) = said(lambda node: node // 60)
    assert finding.cause == "indistinguishable-nodes" and "one row of slot" in finding.message
    assert said(lambda node: node % 5) == []
    assert said(lambda node: node // 60, differ=False) == [], "all of a game are to get the same answer"


@FACES
@pytest.mark.parametrize("conv", [TransformerConv, GATv2Conv])
def test_layers_that_are_never_given_an_edge(face: Face, conv: type[nn.Module]) -> None:
    """A split, a filter or a join has taken all of them; a linear path of the node's own trains on."""

    class Alone(OneWay):
        def __init__(self) -> None:
            super().__init__(True)
            own = {"add_self_loops": False, "residual": True} if conv is GATv2Conv else {}
            self.convs = nn.ModuleList([conv(8, 8, **own)])

    finding = one(face(Alone(), data(edge_index=torch.zeros(2, 0, dtype=torch.long))), "GS402")
    assert finding.severity == "warning" and "given a single edge" in finding.message
    assert loud(face(Alone(), data())) == []


@FACES
def test_edges_of_several_graphs_that_were_not_shifted(face: Face) -> None:
    """Graphs of different sizes and edges: joined by hand, they lie on one another within the first rows; one graph alone may hold all edges."""
    sizes, edges, start = [9, 12, 7, 11, 10], [], 0
    shifted = []
    for number, size in enumerate(sizes):
        own = torch.randint(0, size, (2, 4 * size), generator=seeded(number))
        edges.append(own)
        shifted.append(own + start)
        start += size
    nodes = {"x": torch.randn(start, 8, generator=seeded(7)), "y": torch.randn(start, generator=seeded(8))}
    nodes["batch"] = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    finding = one(face(OneWay(True), Data(edge_index=torch.cat(edges, 1), **nodes)), "GS402")
    assert finding.cause == "isolated-nodes" and finding.severity == "warning"
    assert "within the first 12 rows, while the batch holds 5 graphs" in finding.message
    assert loud(face(OneWay(True), Data(edge_index=torch.cat(shifted, 1), **nodes))) == []
    assert loud(face(OneWay(True), Data(edge_index=torch.unique(edges[0], dim=1), **nodes))) == []


class Heard(nn.Module):
    """A layer of attention with a skip, too small to learn the answers by heart."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.conv, self.out = TransformerConv(WIDTH, 8), nn.Linear(8, 1)

    def forward(self, batch: Data) -> Tensor:
        return self.out(torch.tanh(self.conv(batch.x, batch.edge_index))).squeeze(-1)


@pytest.mark.parametrize(
    ("kept", "own", "expected"), [(15, False, ["warning"]), (15, True, []), (800, False, [])], ids=["few", "own", "all"]
)
@pytest.mark.parametrize("face", ["diagnose", "monitor"])
def test_a_filter_that_leaves_next_to_no_edge(kept: int, own: bool, expected: list[str], face: str) -> None:
    """Whoever answers about itself needs no edge: its loss falls."""
    x = torch.randn(200, WIDTH, generator=seeded(7))
    edges = torch.stack([torch.randint(0, 200, (800,), generator=seeded(8)), torch.arange(200).repeat(4)])
    heard = torch.zeros(200).index_add(0, edges[1], x[edges[0], 0])
    batch = Data(x=x, edge_index=edges[:, :kept], y=2 * x[:, 0] if own else heard)
    model, cost = Heard(), lambda output, batch: F.mse_loss(output, batch.y)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    if face == "diagnose":
        found = gnnstab.diagnose(model, batch=batch, loss=cost, optimizer=optimizer)
    else:
        found = trained(model, batch, cost, steps=60, optimizer=optimizer)
    assert [f.severity for f in loud(found, "GS402")] == expected
    assert all("edge_index (15 edges for 200 nodes)" in f.message for f in loud(found, "GS402"))


class Named(nn.Module):
    """Its features come as an argument that is called after a kind of the relations."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.item = nn.Parameter(torch.randn(NODES, 8))
        kinds, relations = ["user", "item"], [_BOUGHT, _BOUGHT_BY]
        self.conv = HGTConv(8, 8, (kinds, relations))
        self.out = nn.Linear(8, 1)

    def forward(self, user_x: Tensor, edges: dict[tuple[str, str, str], Tensor]) -> Tensor:
        heard = self.conv({"user": user_x, "item": self.item}, edges)["user"]
        return self.out(user_x if heard is None else heard).squeeze(-1)


def test_an_argument_named_after_a_kind_is_of_that_kind() -> None:
    """No relation is called after ``user_x``, and one leads to ``user``."""
    generator = seeded(3)
    bought = torch.stack([torch.randint(0, NODES, (200,), generator=generator) for _ in range(2)])
    x, y = torch.randn(NODES, 8, generator=generator), torch.randn(NODES, generator=generator)

    def asked(*relations: tuple[str, str, str]) -> list[Finding]:
        edges = {relation: bought if relation == _BOUGHT else bought.flip(0) for relation in relations}
        return loud(gnnstab.diagnose(Named(), batch=(x, edges), loss=lambda output, _: F.mse_loss(output, y)), "GS402")

    assert asked(_BOUGHT, _BOUGHT_BY) == []
    assert [f.severity for f in asked(_BOUGHT)] == ["warning"]
