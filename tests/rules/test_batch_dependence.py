"""One graph in its batch and alone; masks that close the wrong keys; each beside the program that is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Batch, Data
from torch_geometric.nn import GATConv, GPSConv, GraphNorm, SGFormer, global_mean_pool
from torch_geometric.utils import to_dense_batch

import gnnstab
from gnnstab.probe.places._weights import against_name, on_padding
from gnnstab.records import Diagnosis, Finding
from trained import take_step

WIDTH = 12


def ring(nodes: int, seed: int) -> Data:
    g = torch.Generator().manual_seed(seed)
    i = torch.arange(nodes)
    x = torch.randn(nodes, 5, generator=g)
    return Data(x=x, edge_index=torch.stack([i, (i + 1) % nodes]), y=x[:, :1].mean(0))


def rings() -> Batch:
    return Batch.from_data_list([ring(nodes, nodes) for nodes in (9, 5, 13, 7, 6, 11)])


class OverNodes(nn.Module):
    """Attention over the nodes of a graph, in padded rows, after a layer on its edges."""

    def __init__(self, mask: Callable[[Tensor], Tensor | None], told: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.enter, self.near, self.norm = nn.Linear(5, WIDTH), GATConv(WIDTH, WIDTH), GraphNorm(WIDTH)
        self.far = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        nn.init.normal_(self.far.in_proj_bias)
        self.leave = nn.Linear(WIDTH, 1)
        self.mask, self.told, self.dropout = mask, told, dropout

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        h = self.enter(x)
        h = h + self.norm(self.near(h, edge_index), batch if self.told else None)
        h = F.dropout(h, self.dropout)
        dense, real = to_dense_batch(h, batch)
        mask = self.mask(real)
        h = h + self.far(dense, dense, dense, key_padding_mask=mask, need_weights=False)[0][real]
        return self.leave(global_mean_pool(h, batch)).squeeze(-1)


class Sets(nn.Module):
    """Attention within padded sets that the batch brings along."""

    def __init__(self, masked: bool, aligned: bool = True, places: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.table = None if places is None else nn.Parameter(torch.randn(places, WIDTH))
        self.enter, self.leave = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 1)
        self.attend = nn.MultiheadAttention(WIDTH, 2, batch_first=aligned)
        self.masked, self.aligned = masked, aligned

    def forward(self, rows: Tensor, lengths: Tensor) -> Tensor:
        h = self.enter(rows) if self.table is None else self.enter(rows) + self.table
        padding = torch.arange(rows.shape[1]) >= lengths[:, None]
        mask = padding if self.masked and self.aligned else None
        return self.leave(h + self.attend(h, h, h, key_padding_mask=mask)[0]).squeeze(-1)


def sets(filled: bool = True) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(4)
    rows, lengths = torch.randn(16, 9, 4, generator=g), torch.randint(3, 10, (16,), generator=g)
    real = torch.arange(9) < lengths[:, None]
    return {"rows": rows if filled else rows * real[..., None], "lengths": lengths, "y": rows[..., 0], "real": real}


def asked(model: nn.Module, batch: Any) -> Diagnosis:
    def loss(output: Tensor, batch: Any) -> Tensor:
        return (
            F.mse_loss(output[batch["real"]], batch["y"][batch["real"]])
            if "real" in batch
            else F.mse_loss(output, batch.y)
        )

    return gnnstab.diagnose(model, batch=batch, loss=loss)


def watched(model: nn.Module, batch: Any) -> Diagnosis:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore") as monitor:
        for _ in range(4):
            known = batch["rows"], batch["lengths"]
            take_step(optimizer, model(*known).square().mean())
    return monitor.diagnose()


def found(diagnosis: Diagnosis, code: str) -> list[Finding]:
    return [f for f in diagnosis.findings if f.code == code]


@pytest.mark.parametrize(
    ("mask", "told", "severities"),
    [
        (lambda real: ~real, True, []),
        (lambda real: None, True, ["warning"]),
        (lambda real: ~real, False, ["warning"]),
    ],
    ids=["right", "padding is read", "a norm over all graphs"],
)
def test_a_graph_alone_and_in_its_batch(mask: Any, told: bool, severities: list[str]) -> None:
    diagnosis = asked(OverNodes(mask, told), rings())
    assert [f.severity for f in found(diagnosis, "GS408")] == severities
    for finding in found(diagnosis, "GS408"):
        assert "graph 1 (5 of up to 13 nodes)" in finding.message and finding.value > 0.01
        assert ("other graphs" in finding.message) == (not told)
        assert finding.explained_by == (None if told else "GS108")
    roots = [cause.cause for cause in diagnosis.root_causes()]
    assert ("masking" in roots) == (bool(severities) and told)


def test_a_mask_the_wrong_way_round_leaves_padding_alone() -> None:
    diagnosis = asked(OverNodes(lambda real: real), rings())
    (finding,) = found(diagnosis, "GS305")
    assert finding.severity == "error" and "wrong way round" in finding.message
    assert [cause.cause for cause in diagnosis.root_causes()] == ["masking"]
    assert not found(asked(OverNodes(lambda real: ~real), rings()), "GS305")


@pytest.mark.parametrize("face", [asked, watched])
def test_padding_that_holds_numbers_and_is_read(face: Callable[[nn.Module, Any], Diagnosis]) -> None:
    diagnosis = face(Sets(masked=False), sets())
    (finding,), (weight,) = found(diagnosis, "GS408"), found(diagnosis, "GS305")
    assert finding.severity == weight.severity == "warning" and finding.explained_by == "GS305"
    assert "`lengths`" in finding.message and "padding by `lengths`" in weight.message and 0.1 < weight.value < 0.5
    repaired = face(Sets(masked=True), sets())
    assert found(repaired, "GS408") == found(repaired, "GS305") == []


class Told(nn.Module):
    """Global attention that asks for the graphs; ``near`` is all that knows them where nobody tells."""

    def __init__(self, far: bool) -> None:
        super().__init__()
        torch.manual_seed(1)
        near = GATConv(WIDTH, WIDTH)
        self.enter, self.leave = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 1)
        self.block = GPSConv(WIDTH, near, heads=2, norm=None) if far else near

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor | None = None) -> Tensor:
        h = self.enter(x)
        h = self.block(h, edge_index, batch) if isinstance(self.block, GPSConv) else self.block(h, edge_index)
        return self.leave(h).squeeze(-1)


def test_graphs_that_nobody_told_the_forward_of() -> None:
    def run(graphs: Batch, far: bool = True, told: bool = False) -> list[Finding]:
        model = Told(far)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore") as monitor:
            for _ in range(2):
                known = (graphs.batch,) if told else ()
                take_step(optimizer, model(graphs.x, graphs.edge_index, *known).square().mean())
        return found(monitor.diagnose(), "GS408")

    (finding,) = run(rings())
    assert finding.severity == "warning" and "no `batch` came in" in finding.message
    assert run(rings(), told=True) == run(rings(), far=False) == []
    assert run(Batch.from_data_list([ring(40, 1)])) == [], "one graph may see itself"


def test_sets_that_read_each_other_where_none_can_run_alone() -> None:
    (finding,) = found(asked(Sets(masked=True, aligned=False, places=9), sets()), "GS408")
    assert finding.severity == "warning" and "when the numbers of other graphs change" in finding.message
    assert not found(asked(Sets(masked=True, places=9), sets()), "GS408")


def test_padding_with_zeros_to_one_width_is_information() -> None:
    (finding,) = found(asked(Sets(masked=False), sets(filled=False)), "GS408")
    assert finding.severity == "info" and finding.explained_by == "GS305"


Closed = Callable[[Tensor], Tensor]


class Fused(nn.Module):
    """Fused attention over sets or over the nodes of one graph, with a mask of the batch in two forms."""

    def __init__(self, mask: Closed, name: str) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.enter, self.leave = nn.Linear(4, 3 * WIDTH), nn.Linear(WIDTH, 1)
        self.mask, self.name = mask, name

    def forward(self, x: Tensor, **given: Tensor) -> Tensor:
        q, k, v = self.enter(x).unsqueeze(-3).chunk(3, -1)
        return self.leave(F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask(given[self.name])).squeeze(-3))


def near(named: str) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(3)
    near = (torch.rand(12, 12, generator=g) < 0.2) | torch.eye(12, dtype=torch.bool)
    edges = near.nonzero().T.flip(0)
    said = {"blocked": ~near, "adj": near.float(), "edge_index": edges, "bias": near}[named]
    return {"x": torch.randn(12, 4, generator=g), named: said}


def dense(edges: Tensor) -> Tensor:
    found = torch.zeros(12, 12, dtype=torch.bool)
    found[edges[1], edges[0]] = True
    return found


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("blocked", lambda mask: mask, lambda mask: ~mask),
        ("adj", lambda mask: (mask > 0).float().mul(-1e9), lambda mask: (mask == 0).float().mul(-1e9)),
        ("edge_index", lambda edges: ~dense(edges), dense),
    ],
)
def test_attention_that_reads_what_the_batch_closes(name: str, wrong: Closed, right: Closed) -> None:
    def said(mask: Closed) -> list[Finding]:
        diagnosis = gnnstab.diagnose(Fused(mask, name), batch=near(name), loss=lambda out, batch: out.square().mean())
        return found(diagnosis, "GS305")

    (finding,) = said(wrong)
    assert f"`{name}`" in finding.message and "wrong way round" in finding.message and finding.severity == "error"
    assert said(right) == []


def test_a_sparse_adjacency_is_not_compared() -> None:
    weights = torch.eye(3)
    assert against_name(weights, {"adj": torch.eye(3).to_sparse()}) == ""
    assert against_name(weights, {"adj": 1 - torch.eye(3)}) == "adj"


def test_a_mask_whose_name_tells_nothing_is_nobody_s_word() -> None:
    for mask in (lambda m: m, lambda m: ~m):
        diagnosis = gnnstab.diagnose(Fused(mask, "bias"), batch=near("bias"))
        assert found(diagnosis, "GS305") == []


@pytest.mark.parametrize(("marks", "told"), [("real", True), ("seen", False), ("unread", False)])
def test_padding_in_front_is_padding_where_its_name_says_so(marks: str, told: bool) -> None:
    """Real rows stand in front by custom; `seen` behind may as well mark padding by True."""
    batch = sets() | {marks: sets()["real"].flip(1), "rows": sets()["rows"]}
    weights = torch.full((16, 9, 9), 1 / 9)
    given = {name: batch[name] for name in ("rows", marks)}
    assert (on_padding(weights, 2, given) is not None) == told


def test_attention_along_the_wrong_axis_lets_sets_hear_each_other() -> None:
    (finding,) = found(asked(Sets(masked=False, aligned=False), sets(filled=False)), "GS408")
    assert finding.severity == "warning" and "other graphs" in finding.message


def test_dropout_that_stays_on_is_told() -> None:
    (finding,) = found(asked(OverNodes(lambda real: ~real, dropout=0.5), rings()), "GS408")
    assert finding.severity == "info" and "two passes" in finding.message


class Graphs(nn.Module):
    """A layer or model of PyG that takes (x, edge_index, batch)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        return self.inner(x, edge_index, batch).mean(-1)


def test_layers_of_pyg_keep_graphs_apart_or_are_told() -> None:
    torch.manual_seed(0)
    data = rings()
    data.y = torch.zeros(data.num_nodes)
    assert found(asked(Graphs(GPSConv(5, GATConv(5, 5), heads=1)), data), "GS408") == []
    (finding,) = found(asked(Graphs(SGFormer(5, 8, 4)), data), "GS408")
    assert "the largest one pads it" in finding.message and 1e-3 < finding.value < 0.1


def test_a_block_that_was_not_given_the_graphs_is_more_than_its_norms() -> None:
    """Its attention mixes graphs, too: norms that are told which node is whose, on a copy, do not undo it."""

    class Untold(Graphs):
        def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
            return self.inner(x, edge_index).mean(-1)

    torch.manual_seed(0)
    data = rings()
    data.y = data.x[:, 0]
    diagnosis = asked(Untold(GPSConv(5, GATConv(5, 5), heads=1, norm="graph_norm")), data)
    assert {f.explained_by for f in found(diagnosis, "GS108")} == {"GS408"}
    assert [cause.cause for cause in diagnosis.root_causes()] == ["masking"]


class Placed(nn.Module):
    """Rows of a learned table are added to the nodes of every graph: by ``number`` (graphs, most nodes) → rows."""

    def __init__(self, number: Callable[[Tensor], Tensor], rooted: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.enter, self.places, self.leave = nn.Linear(5, WIDTH), nn.Embedding(80, WIDTH), nn.Linear(WIDTH, 1)
        self.attend = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.number, self.rooted = number, rooted

    def forward(self, x: Tensor, batch: Tensor, root_index: Tensor) -> Tensor:
        dense, real = to_dense_batch(self.enter(x), batch)
        dense = dense + self.places(self.number(real))
        h = (dense + self.attend(dense, dense, dense, key_padding_mask=~real, need_weights=False)[0])[real]
        return self.leave(h[root_index] if self.rooted else global_mean_pool(h, batch)).squeeze(-1)


@pytest.mark.parametrize(
    ("number", "tells"),
    [
        (lambda real: torch.arange(len(real))[:, None].expand_as(real), True),
        (
            lambda real: torch.zeros_like(real, dtype=torch.long).masked_scatter(real, torch.arange(int(real.sum()))),
            True,
        ),
        (lambda real: torch.arange(real.shape[1]).expand_as(real), False),
    ],
    ids=["of the graph", "of the node in the batch", "of the node in its graph"],
)
@pytest.mark.parametrize("smallest", [0, 5])
def test_a_place_is_the_number_of_a_node_in_its_graph(number: Any, tells: bool, smallest: int) -> None:
    sizes = [7] * 6
    sizes[smallest] = 4
    data = Batch.from_data_list([ring(nodes, seed) for seed, nodes in enumerate(sizes)])
    batch = {"x": data.x, "batch": data.batch, "root_index": data.ptr[:-1] + 1, "y": data.y}

    def loss(output: Tensor, batch: Any) -> Tensor:
        return F.mse_loss(output, batch["y"])

    for rooted in (False, True):
        diagnosis = gnnstab.diagnose(Placed(number, rooted), batch=batch, loss=loss)
        findings = found(diagnosis, "GS408")
        assert [f.severity for f in findings] == ["warning"] * tells
        assert all("first in what `places` gives" in f.message or "place in the batch" in f.message for f in findings)
        assert [c.cause for c in diagnosis.root_causes()] == ["indistinguishable-nodes"] * tells
