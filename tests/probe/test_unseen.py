"""What data and graph keep from a model, which learns a batch by heart all the same: named by steps for half of the rows, and in no repaired twin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data, HeteroData
from torch_geometric.nn import GATConv, GATv2Conv, HGTConv, MessagePassing, TransformerConv
from torch_geometric.utils import softmax

import gnnstab

NODES, WIDTH = 100, 32


class Mean(MessagePassing):
    """Mean of what the neighbours have."""

    def __init__(self) -> None:
        super().__init__(aggr="mean")
        self.lin = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.propagate(edge_index, x=self.lin(x))
        return out

    def message(self, x_j: Tensor) -> Tensor:
        return x_j


class OverGraph(nn.Module):
    """Two layers over a graph behind one another."""

    def __init__(self, layer: Callable[[], nn.Module], layers: int = 2) -> None:
        super().__init__()
        self.enter, self.out = nn.Linear(6, WIDTH), nn.Linear(WIDTH, 1)
        self.convs = nn.ModuleList([layer() for _ in range(layers)])

    def forward(self, data: Data) -> Tensor:
        h = torch.relu(self.enter(data.x))
        for conv in self.convs:
            h = torch.relu(conv(h, data.edge_index))
        out: Tensor = self.out(h).squeeze(-1)
        return out


class Selective(MessagePassing):
    """Attention over the edges that a mask leaves, or over the others; over all of them where nobody says which (None)."""

    def __init__(self, width: int, out: int, turned: bool | None) -> None:
        super().__init__(aggr="add")
        self.lin, self.score, self.turned = nn.Linear(width, out), nn.Linear(2 * out, 1), turned

    def forward(self, x: Tensor, edge_index: Tensor, noise: Tensor) -> Tensor:
        out: Tensor = self.propagate(edge_index, h=self.lin(x), noise=noise)
        return out

    def message(self, h_i: Tensor, h_j: Tensor, noise: Tensor, index: Tensor, size_i: int) -> Tensor:
        hidden = (~noise if self.turned else noise)[:, None]
        score = F.leaky_relu(self.score(torch.cat([h_i, h_j], 1)), 0.2)
        closed = score.masked_fill(hidden, -1e4)
        return softmax(score if self.turned is None else closed, index, num_nodes=size_i) * h_j


class Masked(nn.Module):
    """Classes of nodes by their neighbours, of which noise is to be left out."""

    def __init__(self, turned: bool | None) -> None:
        super().__init__()
        self.one, self.two = Selective(8, WIDTH, turned), Selective(WIDTH, 3, turned)

    def forward(self, data: Data) -> Tensor:
        out: Tensor = self.two(F.elu(self.one(data.x, data.edge_index, data.noise)), data.edge_index, data.noise)
        return out


class Pair(nn.Module):
    """Two numbers of a node, normalised, and their product."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.mlp = nn.Sequential(
            nn.Linear(2, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1)
        )

    def forward(self, data: Data) -> Tensor:
        out: Tensor = self.mlp(self.norm(data.x)).squeeze(-1)
        return out


class Kinds(nn.Module):
    """A kind of nodes whose answers are asked for, and another one beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.ModuleDict({kind: nn.Linear(8, WIDTH) for kind in ("user", "film")})
        meta = (["user", "film"], [("user", "saw", "film"), ("film", "seen_by", "user")])
        self.conv1, self.conv2 = HGTConv(WIDTH, WIDTH, meta, heads=2), HGTConv(WIDTH, WIDTH, meta, heads=2)
        self.out = nn.Linear(WIDTH, 1)

    def forward(self, data: HeteroData) -> Tensor:
        h = {kind: torch.relu(self.lin[kind](x)) for kind, x in data.x_dict.items()}
        h = self.conv2(self.conv1(h, data.edge_index_dict), data.edge_index_dict)
        out: Tensor = self.out(h["user"]).squeeze(-1)
        return out


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def flats(own: float) -> Data:
    """Numbers that follow a node's own features by ``own``, and those of its neighbours."""
    g = generator()
    x, edges = torch.randn(NODES, 6, generator=g), torch.randint(0, NODES, (2, 3 * NODES), generator=g)
    edges = edges[:, edges[0] != edges[1]]
    edges = torch.cat([edges, torch.stack([torch.arange(NODES), (torch.arange(NODES) + 1) % NODES])], 1)
    near = torch.zeros(NODES).index_add_(0, edges[1], x[edges[0], 1]) / torch.bincount(edges[1], minlength=NODES)
    return Data(x=x, edge_index=edges, y=own * (x[:, 0] - x[:, 2]) + (1.5 - own) * near)


def classes() -> Data:
    g = generator()
    y, centre = torch.randint(0, 3, (120,), generator=g), torch.randn(3, 8, generator=g)
    edges = torch.randint(0, 120, (2, 2400), generator=g)
    noise = y[edges[0]] != y[edges[1]]
    return Data(x=0.3 * centre[y] + torch.randn(120, 8, generator=g), edge_index=edges, noise=noise, y=y)


def pairs(sign: bool) -> Data:
    g = generator()
    x = torch.stack([1 + 2 * torch.rand(NODES, generator=g), torch.randn(NODES, generator=g) + 1.5 * sign], 1)
    edges = torch.stack([torch.arange(NODES), torch.arange(NODES).roll(1)])
    return Data(x=x, edge_index=edges, y=(x[:, 0] > x[:, 1]).float() if sign else x[:, 0] * x[:, 1])


def films(alike: bool, from_films: bool = False) -> HeteroData:
    g = generator()
    users, data = torch.randn(90, 8, generator=g), HeteroData()
    data["user"].x = torch.ones(90, 8) if alike else users
    data["film"].x = torch.randn(40, 8, generator=g)
    edges = torch.stack([torch.randint(0, 90, (300,), generator=g), torch.randint(0, 40, (300,), generator=g)])
    data["user", "saw", "film"].edge_index, data["film", "seen_by", "user"].edge_index = edges, edges.flip(0)
    seen = torch.zeros(90).index_add_(0, edges[0], data["film"].x[edges[1], 0])
    data["user"].y = 3.0 * (seen if from_films else users[:, 0] - users[:, 3] > 0)
    return data


def squared(output: Tensor, data: Data) -> Tensor:
    return F.mse_loss(output, data.y)


def of_users(output: Tensor, data: HeteroData) -> Tensor:
    return F.mse_loss(output, data["user"].y)


def crossed(output: Tensor, data: Data) -> Tensor:
    return F.cross_entropy(output, data.y)


def said(model: nn.Module, batch: Any, loss: Callable[[Any, Any], Tensor], rate: float = 5e-3) -> list[tuple[str, str]]:
    """Causes and messages of GS609."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    found = gnnstab.diagnose(model, batch=batch, loss=loss, optimizer=optimizer).findings
    return [(f.cause, f.message) for f in found if f.code == "GS609"]


def transformer(own: bool) -> nn.Module:
    return TransformerConv(WIDTH, WIDTH // 4, heads=4, root_weight=own)


def gat(own: bool) -> nn.Module:
    return GATConv(WIDTH, WIDTH // 4, heads=4, add_self_loops=own)


def gatv2(own: bool) -> nn.Module:
    return GATv2Conv(WIDTH, WIDTH // 4, heads=4, add_self_loops=own)


class WithOwn(Mean):
    """The same with a term of the node itself."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return x + super().forward(x, edge_index)


def own_layer(own: bool) -> nn.Module:
    return WithOwn() if own else Mean()


@pytest.mark.parametrize("layer", [transformer, gat, gatv2, own_layer])
@pytest.mark.parametrize("own", [False, True])
def test_a_missing_term_of_the_node_itself_is_named_where_the_answers_need_it(
    layer: Callable[[bool], nn.Module], own: bool
) -> None:
    torch.manual_seed(0)
    told = said(OverGraph(lambda: layer(own)), flats(1.0), squared, 1e-2)
    assert [cause for cause, _ in told] == ([] if own else ["no-residual"])
    assert all("convs.0, convs.1 have no term of the node itself" in message for _, message in told)


def test_no_such_term_is_missed_where_the_neighbours_are_the_answer() -> None:
    torch.manual_seed(0)
    assert said(OverGraph(lambda: transformer(False), layers=1), flats(0.0), squared) == []


@pytest.mark.parametrize("turned", [True, False])
def test_a_mask_of_edges_that_is_used_the_wrong_way_round_is_named(turned: bool) -> None:
    torch.manual_seed(0)
    told = said(Masked(turned), classes(), crossed, 1e-2)
    assert [cause for cause, _ in told] == (["masking"] if turned else [])
    assert all("`noise`" in message for _, message in told)


@pytest.mark.parametrize("useful", [True, False])
def test_a_mask_of_edges_that_changes_nothing_is_named_where_the_edges_that_it_marks_are_in_the_way(
    useful: bool,
) -> None:
    torch.manual_seed(0)
    batch = classes()
    if not useful:
        batch.noise = torch.rand(batch.num_edges, generator=generator()) < 0.5
    told = said(Masked(None), batch, crossed, 1e-2)
    assert [cause for cause, _ in told] == (["masking"] if useful else [])
    assert all("`noise` of edges is handed over and changes nothing" in message for _, message in told)


@pytest.mark.parametrize(
    ("norm", "named"), [(nn.LayerNorm(2), True), (nn.GroupNorm(1, 2), True), (nn.BatchNorm1d(2), False)]
)
def test_a_norm_over_two_numbers_leaves_a_sign(norm: nn.Module, named: bool) -> None:
    torch.manual_seed(0)
    told = said(Pair(norm), pairs(False), squared)
    assert [cause for cause, _ in told] == (["normalization-misuse"] if named else [])
    assert all("norm normalises each row over two numbers" in message for _, message in told)


def test_a_sign_may_be_all_that_is_asked_for() -> None:
    torch.manual_seed(0)
    assert said(Pair(nn.LayerNorm(2)), pairs(True), squared) == []


def test_rows_that_come_alike_and_are_learned_by_heart_are_named() -> None:
    torch.manual_seed(0)
    told = said(Kinds(), films(alike=True), of_users, 1e-2)
    assert [cause for cause, _ in told] == ["indistinguishable-nodes"]
    assert "all 90 nodes of user" in told[0][1] and "by heart" in told[0][1]


@pytest.mark.parametrize(("alike", "from_films"), [(False, False), (True, True)])
def test_users_that_differ_or_whose_films_tell_are_no_fault(alike: bool, from_films: bool) -> None:
    torch.manual_seed(0)
    assert said(Kinds(), films(alike, from_films), of_users, 1e-2) == []


class Foretold(nn.Module):
    """Numbers of hidden edges, from those of the edges that are shown."""

    def __init__(self) -> None:
        super().__init__()
        self.lin, self.out = nn.Linear(9, WIDTH), nn.Linear(WIDTH, 1)

    def forward(self, data: Data) -> Tensor:
        source, target = data.edge_index
        shown = torch.where(data.shown, data.value, torch.zeros_like(data.value))[:, None]
        h = torch.relu(self.lin(torch.cat([data.x[source], data.x[target], shown], 1)))
        out: Tensor = self.out(h).squeeze(-1)
        return out


def test_a_mask_that_hides_what_is_asked_for_is_not_turned_round() -> None:
    torch.manual_seed(0)
    g = generator()
    edges, shown = torch.randint(0, NODES, (2, 300), generator=g), torch.rand(300, generator=g) < 0.5
    x, value = torch.randn(NODES, 4, generator=g), torch.randn(300, generator=g)
    batch = Data(x=x, edge_index=edges, value=value, shown=shown)
    assert said(Foretold(), batch, lambda out, data: F.mse_loss(out[~data.shown], data.value[~data.shown])) == []


class Unit(nn.Module):
    """Numbers of a node by its features and by those around, whose rows are divided by their length in one way or another, or not at all."""

    def __init__(self, divide: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__()
        self.divide = divide
        self.enter, self.conv = nn.Linear(5, WIDTH), TransformerConv(WIDTH, WIDTH // 2, heads=2)
        self.out = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1))

    def forward(self, data: Data) -> Tensor:
        x = data.x if self.divide is None else self.divide(data.x)
        h = torch.relu(self.enter(x))
        out: Tensor = self.out(h + self.conv(h, data.edge_index)).squeeze(-1)
        return out


def by_sum(x: Tensor) -> Tensor:
    return x / x.abs().sum(-1, keepdim=True)


def spendings(by_size: bool) -> Data:
    """Shares of five kinds of goods times what was spent in all, which the answers follow; or they follow the shares."""
    g = generator()
    share, size = torch.rand(120, 5, generator=g) + 0.2, torch.randn(120, generator=g)
    share = share / share.sum(1, keepdim=True)
    edges = torch.randint(0, 120, (2, 480), generator=g)
    y = size if by_size else 8 * (share[:, 0] - share[:, 1])
    return Data(x=3 * share * (0.5 * size).exp()[:, None], edge_index=edges, y=y)


@pytest.mark.parametrize(
    ("divide", "by_size", "named"),
    [(F.normalize, True, True), (by_sum, True, True), (None, True, False), (by_sum, False, False)],
)
def test_rows_that_lose_a_length_which_the_answers_need(
    divide: Callable[[Tensor], Tensor] | None, by_size: bool, named: bool
) -> None:
    torch.manual_seed(0)
    told = said(Unit(divide), spendings(by_size), squared, 1e-2)
    assert [cause for cause, _ in told] == (["normalization-misuse"] if named else [])
    assert all("divides 120 rows of the input by their own sum or length (line" in message for _, message in told)


def test_a_constant_is_proposed_in_place_of_a_row_s_own_sum() -> None:
    torch.manual_seed(0)
    model = Unit(by_sum)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    found = gnnstab.diagnose(model, batch=spendings(True), loss=squared, optimizer=optimizer)
    (cause,) = found.root_causes()
    assert [fix.fix for fix in cause.fixes] == ["undo-normalisation"] and "own sum" in cause.fixes[0].change
