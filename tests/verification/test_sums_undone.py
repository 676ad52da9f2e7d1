"""Sums that make a fresh output far larger than what it is compared with: found by the loss of zeros, and undone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Batch, Data
from torch_geometric.nn import GCNConv, MessagePassing, TransformerConv, global_add_pool, global_mean_pool
from torch_geometric.nn.pool import glob
from torch_geometric.utils import scatter, softmax, spmm

import gnnstab
from gnnstab.probe.pooling import sums_watched
from gnnstab.probe.replaying.zero_output import loss_over_zero
from trained import trained


class Crowd(MessagePassing):
    """Adds up, or averages, what everybody around says."""

    def __init__(self, width: int, aggr: str) -> None:
        super().__init__(aggr=aggr)
        self.lin = nn.Linear(width, width)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return x + torch.relu(self.propagate(edge_index, x=self.lin(x)))

    def message(self, x_j: Tensor) -> Tensor:
        return x_j


class Voters(nn.Module):
    """Two rounds of talk among many, a number for each voter."""

    def __init__(self, aggr: str) -> None:
        super().__init__()
        self.inp = nn.Linear(4, 16)
        self.rounds = nn.ModuleList([Crowd(16, aggr) for _ in range(3)])
        self.out = nn.Linear(16, 1)

    def forward(self, data: Data) -> Tensor:
        h = self.inp(data.x)
        for talk in self.rounds:
            h = talk(h, data.edge_index)
        return self.out(h).squeeze(-1)


class Towns(nn.Module):
    """A share for each town, out of what its houses are."""

    def __init__(self, pool: str) -> None:
        super().__init__()
        self.inp = nn.Linear(4, 16)
        self.conv = TransformerConv(16, 8, heads=2)
        self.pool = global_add_pool if pool == "add" else global_mean_pool
        self.out = nn.Linear(16, 1)

    def forward(self, data: Batch) -> Tensor:
        h = torch.relu(self.inp(data.x))
        return self.out(self.pool(h + self.conv(h, data.edge_index), data.batch)).squeeze(-1)


class Markets(nn.Module):
    """What all sellers around say, added up, or averaged, by the model's own code."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.inp, self.out = nn.Linear(8, 16), nn.Linear(16, 1)
        self.conv = TransformerConv(16, 8, heads=2)

    def forward(self, data: Data) -> Tensor:
        source, target = data.edge_index
        heard = torch.zeros_like(data.x).index_add_(0, target, data.x[source].abs())
        if self.how == "mean":
            heard = heard / torch.bincount(target, minlength=len(heard)).clamp(min=1)[:, None]
        h = self.inp(torch.cat([data.x, heard], 1))
        return self.out(h + self.conv(h, data.edge_index)).squeeze(-1)


class Toll(MessagePassing):
    """Attention over roads in; the toll of a road is added to what comes over it, weighted as that is or as it stands."""

    def __init__(self, weighted: bool) -> None:
        super().__init__(aggr="add", node_dim=0)
        self.weighted = weighted
        self.ask, self.say, self.value, self.own = (nn.Linear(16, 16) for _ in range(4))
        self.fee = nn.Linear(2, 16)

    def forward(self, x: Tensor, edge_index: Tensor, toll: Tensor) -> Tensor:
        ask, say, value = (lin(x).view(-1, 2, 8) for lin in (self.ask, self.say, self.value))
        fee = self.fee(toll).view(-1, 2, 8)
        return self.own(x) + self.propagate(edge_index, ask=ask, say=say, value=value, fee=fee).flatten(1)

    def message(self, ask_i: Tensor, say_j: Tensor, value_j: Tensor, fee: Tensor, index: Tensor) -> Tensor:
        share = softmax((ask_i * say_j).sum(-1) / 8**0.5, index).unsqueeze(-1)
        return share * (value_j + fee) if self.weighted else share * value_j + fee


class Roads(nn.Module):
    """A number for each town, two roads away."""

    def __init__(self, weighted: bool) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(4, 16), nn.Linear(16, 1)
        self.tolls = nn.ModuleList([Toll(weighted) for _ in range(2)])

    def forward(self, data: Data) -> Tensor:
        h = self.inp(data.x)
        for layer in self.tolls:
            h = torch.relu(layer(h, data.edge_index, data.toll))
        return self.out(h).squeeze(-1)


class Pedestrians(nn.Module):
    """Attention behind what everybody around says, added up in one of the ways that torch has."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.say = nn.Sequential(nn.Linear(8, 32), nn.LayerNorm(32))
        nn.init.ones_(self.say[1].bias)
        self.mix, self.out = TransformerConv(32, 16, heads=2), nn.Linear(32, 2)

    def forward(self, data: Data) -> Tensor:
        src, dst = data.edge_index
        m = self.say(torch.cat([data.x[src], data.x[dst]], 1))
        total = torch.zeros(len(data.x), 32)
        if self.how == "index_add_":
            total.index_add_(0, dst, m)
        elif self.how == "scatter_add_":
            total.scatter_add_(0, dst[:, None].expand_as(m), m)
        elif self.how == "scatter_reduce_":
            total.scatter_reduce_(0, dst.unsqueeze(1).expand(-1, 32), m, "sum")
        elif self.how == "index_put_":
            total.index_put_((dst,), m, accumulate=True)
        elif self.how == "torch.index_add":
            total = torch.index_add(total, 0, dst, m)
        elif self.how == "scatter":
            total = scatter(m, dst, 0, len(total), reduce="sum")
        elif self.how == "torch.sparse.mm":
            total = torch.sparse.mm(incidence(dst), m)
        elif self.how == "spmm":
            total = spmm(incidence(dst).to_sparse_csr(), m)
        elif self.how == "@":
            total = incidence(dst).to_dense() @ m
        return self.out(torch.tanh(self.mix(total, data.edge_index)))


def incidence(dst: Tensor) -> Tensor:
    """(60, E) which edge ends in which node, in COO."""
    where = torch.stack([dst, torch.arange(len(dst))])
    return torch.sparse_coo_tensor(where, torch.ones(len(dst)), (60, len(dst)), check_invariants=False).coalesce()


def pedestrians() -> Data:
    torch.manual_seed(4)
    return Data(x=torch.randn(60, 4), edge_index=torch.randint(0, 60, (2, 3000)))


def squared(output: Tensor, data: Data) -> Tensor:
    return nn.functional.mse_loss(output, data.y)


def voters() -> Data:
    torch.manual_seed(4)
    x = torch.randn(60, 4) + 1
    return Data(x=x, edge_index=torch.randint(0, 60, (2, 1800)), y=x.mean(1))


def markets() -> Data:
    torch.manual_seed(4)
    target = torch.cat([torch.randint(0, 60, (600,)), torch.randint(0, 12, (1200,))])
    x = torch.randn(60, 4)
    return Data(x=x, edge_index=torch.stack([torch.randint(0, 60, (1800,)), target]), y=x.mean(1))


def roads(most: int = 250) -> Data:
    torch.manual_seed(4)
    degree = torch.linspace(1, most**0.5, 60).square().long() if most > 8 else torch.full((60,), most)
    target = torch.arange(60).repeat_interleave(degree)
    edges = torch.stack([torch.randint(0, 60, (len(target),)), target])
    x = torch.randn(60, 4)
    return Data(x=x, edge_index=edges, toll=torch.rand(len(target), 2) + 1, y=x.mean(1))


def towns() -> Batch:
    torch.manual_seed(5)
    sizes = (30, 400, 900)
    graphs = [Data(x=torch.randn(n, 4), edge_index=torch.randint(0, n, (2, 3 * n)), y=torch.rand(1)) for n in sizes]
    return Batch.from_data_list(graphs)


BY_INDEX = ("index_add_", "scatter_add_", "scatter_reduce_", "index_put_", "torch.index_add", "scatter")


@pytest.fixture(autouse=True)
def _own_random_numbers():
    with torch.random.fork_rng(devices=[]):
        yield


@pytest.mark.parametrize(
    ("model_of", "batch_of", "broken", "repaired", "said"),
    [
        (Voters, voters, "add", "mean", "in-degree"),
        (Towns, towns, "add", "mean", "pool"),
        (Markets, markets, "add", "mean", "own code"),
    ],
    ids=["messages", "pooling", "own code"],
)
def test_a_sum_whose_undoing_brings_the_loss_back_is_the_root(model_of, batch_of, broken, repaired, said):
    batch = batch_of()
    torch.manual_seed(6)
    bad = gnnstab.diagnose(model_of(broken), batch=batch, loss=squared)
    assert [cause.cause for cause in bad.root_causes()] == ["sum-aggregation"]
    (root,) = bad.root_causes()
    assert root.how == "undone" and root.share is not None and root.share > 0.5
    assert said in root.reason
    torch.manual_seed(6)
    good = gnnstab.diagnose(model_of(repaired), batch=batch, loss=squared)
    assert not good.root_causes()
    assert not [finding for finding in good.findings if finding.code == "GS401"]


@pytest.mark.parametrize("weighted", [False, True])
def test_what_attention_adds_to_its_messages_beside_the_weights_is_a_sum(weighted: bool) -> None:
    torch.manual_seed(6)
    said = gnnstab.diagnose(Roads(weighted), batch=roads(), loss=squared)
    assert [cause.cause for cause in said.root_causes()] == ["sum-aggregation"] * (not weighted)
    named = [f.layer for f in said.findings if f.code == "GS401"]
    assert named[:1] == ["tolls.0"] * (not weighted)
    for root in said.root_causes():
        assert root.how == "undone" and "tolls.0, tolls.1" in root.reason
        assert [fix.fix for fix in root.fixes] == ["weigh-messages"]


def test_at_constant_in_degree_such_a_sum_is_a_mean_with_another_weight() -> None:
    torch.manual_seed(6)
    said = gnnstab.diagnose(Roads(False), batch=roads(6), loss=squared)
    assert not said.root_causes() and not [f for f in said.findings if f.code == "GS401"]


@pytest.mark.parametrize(("model_of", "batch_of"), [(Towns, towns), (Markets, markets)], ids=["pooling", "own code"])
@pytest.mark.parametrize("how", ["add", "mean"])
def test_a_monitor_without_the_loss_says_the_same(model_of, batch_of, how):
    batch = batch_of()
    torch.manual_seed(6)
    model = model_of(how)
    said = trained(model, batch, squared, steps=4)
    found = [f.signal for f in said.findings if f.code == "GS401" and f.severity == "warning"]
    assert found == (["loss.over_zero"] if how == "add" else [])


def test_a_target_as_large_as_the_sum_is_no_fault():
    batch = towns()
    batch.y = 40 * torch.bincount(batch.batch).float()
    torch.manual_seed(6)
    assert "sum-aggregation" not in [
        c.cause for c in gnnstab.diagnose(Towns("add"), batch=batch, loss=squared).root_causes()
    ]


def test_the_pooling_is_given_back_and_means_only_where_asked():
    before, x, batch = glob.scatter, torch.ones(6, 2), torch.tensor([0, 0, 0, 0, 1, 1])
    with sums_watched() as seen:
        assert global_add_pool(x, batch)[0, 0] == 4
        global_mean_pool(x, batch)
    with sums_watched(pool_mean=True):
        assert global_add_pool(x, batch)[0, 0] == 1
    with pytest.raises(AttributeError), sums_watched():
        global_add_pool(None, batch)
    assert seen.pooled == [4]
    assert glob.scatter is before


def test_losses_without_a_ratio_have_none():
    output = torch.ones(3)
    for loss in (None, lambda o, b: o.sum() - 3, lambda o, b: o.square().sum(), lambda o, b: o.nonexistent):
        assert loss_over_zero(output, torch.tensor(2.0), None, loss) != loss_over_zero(
            output, torch.tensor(2.0), None, loss
        )
    assert loss_over_zero({"a": output}, torch.tensor(6.0), None, lambda o, b: (o["a"] - 1).square().sum()) == 2.0


def test_normalised_sums_are_left_alone():
    class Gcn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.att = GCNConv(4, 16), TransformerConv(16, 1)

        def forward(self, data: Data) -> Tensor:
            return self.att(torch.relu(self.conv(data.x, data.edge_index)), data.edge_index).squeeze(-1)

    torch.manual_seed(6)
    assert not gnnstab.diagnose(Gcn(), batch=voters(), loss=squared).root_causes()


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize(
    ("how", "counted"),
    [
        *((how, "torch.bincount(dst, minlength=total.size(0))") for how in BY_INDEX),
        ("torch.sparse.mm", "(incidence(dst) @ torch.ones(incidence(dst).size(-1)))"),
        ("spmm", "(incidence(dst).to_sparse_csr() @ torch.ones(incidence(dst).to_sparse_csr().size(-1)))"),
        ("@", "(incidence(dst).to_dense() @ torch.ones(incidence(dst).to_dense().size(-1)))"),
    ],
)
def test_every_way_to_add_up_is_undone_and_named_in_the_own_lines(how, counted):
    torch.manual_seed(6)
    said = gnnstab.diagnose(Pedestrians(how), batch=pedestrians())
    (root,) = said.root_causes()
    assert (root.cause, root.how) == ("sum-aggregation", "undone")
    assert "GS401" in root.codes and "GS702" in root.codes, "the tanh behind it follows from the sum, not from features"
    (fix,) = root.fixes
    *now, count, division = fix.change.splitlines()
    assert all(line.startswith("# ") for line in now)
    assert fix.fix == "divide-sum" and how.rpartition(".")[2] in " ".join(now)
    assert count.startswith(f"count = {counted}.clamp(min=1)")
    assert division == "total = total / count.unsqueeze(-1)"


def summed_by_torch_sparse(dst: Tensor, m: Tensor) -> Tensor:
    """As a matrix of torch_sparse is multiplied: by an operation of its own, which stands in here for the package."""
    library = torch.library.Library("torch_sparse", "FRAGMENT")
    library.define("spmm_sum(Tensor? row, Tensor rowptr, Tensor col, Tensor other) -> Tensor")
    library.impl("spmm_sum", lambda row, rowptr, col, other: torch.segment_reduce(other[col], "sum", offsets=rowptr))
    try:
        ends = torch.bincount(dst).cumsum(0)
        return torch.ops.torch_sparse.spmm_sum(None, torch.cat([ends.new_zeros(1), ends]), dst.argsort(), m)
    finally:
        library._destroy()


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize(
    "total",
    [
        lambda dst, m: torch.zeros(60, 32).index_add(0, dst, m),
        lambda dst, m: scatter(m, dst, 0, 60, reduce="sum"),
        lambda dst, m: torch.sparse.mm(incidence(dst), m),
        lambda dst, m: incidence(dst).to_dense()[None].matmul(m[None])[0],
        lambda dst, m: torch.einsum("ji, jd -> id", incidence(dst).to_dense().T, m),
        lambda dst, m: torch.einsum("bij,bjd->bid", incidence(dst).to_dense()[None], m[None])[0],
        summed_by_torch_sparse,
    ],
)
@pytest.mark.parametrize(
    ("divide", "grows"),
    [
        (lambda total, count: total, True),
        (lambda total, count: 2 * total, True),
        (lambda total, count: total / count, False),
        (lambda total, count: total * count.pow(-1), False),
        (lambda total, count: total.div_(count), False),
    ],
)
def test_a_sum_that_the_own_code_divides_is_no_sum_and_is_not_divided_twice(total, divide, grows):
    torch.manual_seed(4)
    dst, m = torch.arange(60).repeat_interleave(torch.arange(1, 61)), torch.randn(1830, 32) + 1
    count = torch.bincount(dst)[:, None].float()
    plain = divide(total(dst, m), count)
    with sums_watched() as seen:
        assert divide(total(dst, m), count).equal(plain)
    with sums_watched(mean=True):
        mean = divide(total(dst, m), count)
    torch.testing.assert_close(mean, plain / count if grows else plain)
    assert [size for size, _ in seen.by_hand] == [60] * grows


def test_features_times_weights_and_normalised_matrices_are_no_sums():
    torch.manual_seed(4)
    words, weight = (torch.rand(40, 300) < torch.rand(40, 1)).float(), nn.Parameter(torch.ones(300, 8))
    with sums_watched() as seen:
        words @ weight
        torch.sparse.mm(words.to_sparse(), weight)
        (words / words.sum(1, keepdim=True)) @ torch.ones(300, 8)
        torch.einsum("ij,jd->id", words, weight)
        torch.einsum("ij,jd->id", words / words.sum(1, keepdim=True), torch.ones(300, 8))
        torch.einsum("id,jd->ij", words, torch.ones(40, 300))
        torch.einsum("ij,ij->i", words, torch.ones(40, 300))
    assert not seen.by_hand
