"""The scale of an input that saturates nothing and keeps the model from learning: judged by the same steps on two copies."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch_geometric.data import Batch, Data
from torch_geometric.nn import GATConv, MessagePassing, TransformerConv, global_mean_pool
from torch_geometric.utils import softmax

import gnnstab
from trained import trained


class Molecules(nn.Module):
    """Graphs → logits of two classes, (graphs, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(10, 32)
        self.attend = GATConv(32, 8, heads=4, residual=True)
        self.norm = nn.LayerNorm(32)
        self.out = nn.Linear(32, 2)

    def forward(self, data: Data) -> torch.Tensor:
        h = self.norm(self.attend(self.embed(data.x), data.edge_index)).relu()
        return self.out(global_mean_pool(h, data.batch))


def molecules(*, raw: bool) -> Batch:
    """32 graphs whose class is the sign of the mean of column 0; ``raw``: column 3 lies at 800 ± 40."""
    made = []
    for seed in range(32):
        g = torch.Generator().manual_seed(seed)
        x = torch.randn(12, 10, generator=g)
        y = (x[:, 0].mean() > 0).long().view(1)
        if raw:
            x[:, 3] = x[:, 3] * 40 + 800
        made.append(Data(x=x, edge_index=torch.randint(0, 12, (2, 60), generator=g), y=y))
    return Batch.from_data_list(made)


def cross_entropy(output: torch.Tensor, batch: Data) -> torch.Tensor:
    return nn.functional.cross_entropy(output, batch.y)


@pytest.mark.parametrize("loss", [None, cross_entropy])
@pytest.mark.parametrize("raw", [True, False])
def test_a_column_that_drowns_the_others_is_a_warning_where_the_copy_learns_without_it(raw, loss):
    torch.manual_seed(0)
    found = gnnstab.diagnose(Molecules(), batch=molecules(raw=raw), loss=loss)
    told = [f for f in found.findings if f.signal == "optimizer.input_share"]
    assert [(f.code, f.layer, f.severity) for f in told] == ([("GS406", "x", "warning")] if raw else [])
    if raw:
        objective = "the cross-entropy between the output and y" if loss is None else "the loss of one batch"
        assert objective in told[0].message
        assert [(c.cause, c.how) for c in found.causes if c.status == "root-cause"] == [("feature-scale", "undone")]


@pytest.mark.parametrize("raw", [True, False])
def test_coming_down_from_a_far_off_first_output_is_nothing_learned(raw):
    """Large edge features make the first loss large: it falls fast, to that of an output of zeros, and hardly any further."""

    class Roads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.attend = nn.Linear(4, 16), TransformerConv(16, 16, edge_dim=1)
            self.out = nn.Linear(16, 1)

        def forward(self, data: Data) -> torch.Tensor:
            h = self.embed(data.x)
            return self.out(h + self.attend(h, data.edge_index, data.edge_attr))[:, 0]

    g = torch.Generator().manual_seed(1)
    length, edges = torch.randn(200, 1, generator=g), torch.randint(0, 40, (2, 200), generator=g)
    y = 0.2 * torch.zeros(40).index_add_(0, edges[1], length[:, 0])
    attr = 140 + 14 * length if raw else length
    batch = Data(x=torch.randn(40, 4, generator=g), edge_index=edges, edge_attr=attr, y=y)
    torch.manual_seed(0)
    model = Roads()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    found = gnnstab.diagnose(model, batch=batch, loss=lambda o, b: nn.functional.mse_loss(o, b.y), optimizer=optimizer)
    told = [f for f in found.findings if f.signal == "optimizer.input_share"]
    assert [(f.layer, f.severity) for f in told] == ([("edge_attr", "warning")] if raw else [])
    assert all("where an output of zeros has" in f.message for f in told)


@pytest.mark.parametrize("raw", [True, False])
def test_a_run_that_has_only_come_down_from_a_far_off_first_output_has_learned_nothing(raw):
    """A column of seconds makes the first loss large; 60 steps later it is hundreds of times smaller, and above that of zeros."""

    class Tides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend, self.mix, self.out = TransformerConv(4, 16), nn.Linear(21, 16), nn.Linear(16, 1)

        def forward(self, data: Data) -> torch.Tensor:
            h = self.attend(data.x[:, :4], data.edge_index)
            return self.out(self.mix(torch.cat([h, data.x], 1)).relu())[:, 0]

    g = torch.Generator().manual_seed(2)
    x = torch.randn(60, 5, generator=g)
    y = x[:, 0] - x[:, 1]
    x[:, 4] = 1000 * x[:, 4] + 1800 if raw else x[:, 4]
    torch.manual_seed(0)
    batch = Data(x=x, edge_index=torch.randint(0, 60, (2, 240), generator=g), y=y)
    model = Tides()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    found = trained(model, batch, lambda o, b: nn.functional.mse_loss(o, b.y), 60, optimizer=optimizer)
    (loss,) = [s.detail for s in found.signals if s.name == "loss"]
    assert loss["best"] < loss["start"] / 3
    told = [(f.code, f.layer) for f in found.findings if f.signal == "optimizer.input_share"]
    assert told == ([("GS406", "x")] if raw else [])


@pytest.mark.parametrize("filler", [-999.0, 0.0])
def test_a_filler_that_goes_in_as_a_number_is_named(filler):
    """Rows of padding take part in the attention's skip and in the mean of each graph."""

    class Wards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend, self.out = GATConv(4, 8, residual=True), nn.Linear(12, 1)

        def forward(self, data: Data) -> torch.Tensor:
            h = torch.cat([self.attend(data.x, data.edge_index), data.x], 1)
            return self.out(h.view(16, 12, 12).mean(1))[:, 0]

    g = torch.Generator().manual_seed(3)
    x = torch.randn(16, 12, 4, generator=g) + torch.randn(16, 1, 4, generator=g)
    real = torch.arange(12) < torch.randint(7, 12, (16, 1), generator=g)
    y = torch.stack([one[known, 0].mean() for one, known in zip(x, real, strict=True)])
    edges = torch.cat([torch.randint(0, 7, (2, 24), generator=g) + 12 * ward for ward in range(16)], 1)
    x[~real] = filler
    torch.manual_seed(0)
    model = Wards()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    found = gnnstab.diagnose(
        model,
        batch=Data(x=x.flatten(0, 1), edge_index=edges, y=y),
        loss=lambda o, b: nn.functional.mse_loss(o, b.y),
        optimizer=optimizer,
    )
    told = [f for f in found.findings if f.signal == "optimizer.input_share"]
    assert [(f.layer, f.cause, f.severity) for f in told] == ([("x", "masking", "warning")] if filler else [])
    assert all("x.masked_fill(x == -999, 0)" in f.message for f in told)


def test_standardising_it_is_confirmed():
    torch.manual_seed(0)
    (verdict,) = gnnstab.verify(
        Molecules(), "input-standardisation", batch=molecules(raw=True), loss=cross_entropy, seeds=3, steps=12
    )
    assert verdict.verdict == "confirmed", verdict.reason


def test_a_run_that_stands_still_for_it_says_so():
    torch.manual_seed(0)
    model, batch = Molecules(), molecules(raw=True)
    found = trained(model, batch, cross_entropy, 20)
    assert [f.layer for f in found.findings if f.signal == "optimizer.input_share"] == ["x"]


@pytest.mark.parametrize(
    ("output", "batch", "called"),
    [
        ((4, 3), {"y": torch.tensor([0, 1, 2, 0])}, "cross-entropy"),
        ((4, 1), {"y": torch.tensor([0, 1, 1, 0])}, "cross-entropy"),
        ((4, 1), {"y": torch.rand(4)}, "squared error"),
    ],
)
def test_targets_have_a_usual_loss(output, batch, called):
    from gnnstab.probe.batches.loss import loss_with_targets

    loss, name = loss_with_targets(batch)
    assert called in name
    assert loss(torch.zeros(output), batch).ndim == 0
    with pytest.raises(gnnstab.errors.UsageError, match="pass loss="):
        loss(torch.zeros(7, 5), batch)


def test_two_tensors_that_may_be_targets_have_none():
    from gnnstab.probe.batches.loss import loss_with_targets

    assert loss_with_targets({"y": torch.rand(4), "target": torch.rand(4)}) is None
    assert loss_with_targets({"x": torch.rand(4)}) is None


@pytest.mark.parametrize("face", ["diagnose", "monitor"])
@pytest.mark.parametrize("raw", [True, False])
def test_a_residual_stream_keeps_the_scale_that_the_norms_of_its_branches_take_away(raw, face):
    """A time in seconds enters a stream whose blocks begin with a LayerNorm; by rounding it also makes all nodes alike."""

    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.leave = nn.Linear(6, 32), nn.Linear(32, 1)
            self.attend = nn.ModuleList(TransformerConv(32, 8, heads=4) for _ in range(2))
            self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(2))

        def forward(self, data: Data) -> torch.Tensor:
            h = self.enter(data.x)
            for norm, conv in zip(self.norms, self.attend, strict=True):
                h = h + conv(norm(h), data.edge_index).relu()
            return self.leave(h)

    g = torch.Generator().manual_seed(0)
    x = torch.randn(60, 6, generator=g)
    y = x[:, :1] / 2
    if raw:
        x[:, 3] = 1.7e9 + 2.6e6 * torch.rand(60, generator=g)
    batch = Data(x=x, edge_index=torch.randint(0, 60, (2, 300), generator=g), y=y)
    torch.manual_seed(1)
    model = Blocks()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def loss(output: torch.Tensor, batch: Data) -> torch.Tensor:
        return nn.functional.mse_loss(output, batch.y)

    if face == "monitor":
        found = trained(model, batch, loss, 30, optimizer=optimizer)
    else:
        found = gnnstab.diagnose(model, batch=batch, loss=loss, optimizer=optimizer)
    assert [c.cause for c in found.root_causes()] == (["feature-scale"] if raw else [])
    assert all("Standardise" in f.message for f in found.findings if f.code in ("GS406", "GS704"))


class Flows(nn.Module):
    """What flows into each junction along its pipes, told by the edges alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embed, self.attend = nn.Linear(4, 16), TransformerConv(16, 16, edge_dim=2)
        self.out = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, data: Data) -> torch.Tensor:
        h = self.embed(data.x)
        answer: torch.Tensor = self.out(h + self.attend(h, data.edge_index, data.edge_attr))[:, 0]
        return answer


@pytest.mark.parametrize("monitored", [True, False])
@pytest.mark.parametrize(("unit", "needed"), [(1e-5, True), (1.0, True), (1e-5, False)])
def test_edge_features_that_vanish_beside_a_bias_are_told_where_the_answer_needs_them(unit, needed, monitored):
    g = torch.Generator().manual_seed(2)
    x, edges = torch.randn(90, 4, generator=g), torch.randint(0, 90, (2, 270), generator=g)
    flow = torch.randn(270, 2, generator=g)
    mean = torch.zeros(90).index_add_(0, edges[1], flow[:, 0]) / torch.bincount(edges[1], minlength=90).clamp(min=1)
    batch = Data(x=x, edge_index=edges, edge_attr=unit * flow, y=2 * mean if needed else x[:, 0] - x[:, 1])

    def loss(output: torch.Tensor, data: Data) -> torch.Tensor:
        return nn.functional.mse_loss(output, data.y)

    model = Flows()
    if monitored:
        diagnosis = trained(model, batch, loss, steps=40, lr=5e-3)
    else:
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        diagnosis = gnnstab.diagnose(model, batch=batch, loss=loss, optimizer=optimizer)
    told = [(f.layer, f.severity) for f in diagnosis.findings if f.code == "GS406"]
    assert told == ([("edge_attr", "warning")] if unit < 1 and needed else [])


class Kin(MessagePassing):
    """Attention of a layer that nobody has described."""

    def __init__(self) -> None:
        super().__init__(aggr="add")
        torch.manual_seed(3)
        self.enter, self.score, self.leave = nn.Linear(4, 16), nn.Linear(32, 1), nn.Linear(16, 1)

    def forward(self, data: Data) -> torch.Tensor:
        h = self.enter(data.x).relu()
        answer: torch.Tensor = self.leave(h + self.propagate(data.edge_index, h=h))[:, 0]
        return answer

    def message(self, h_i: torch.Tensor, h_j: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return softmax(self.score(torch.cat([h_i, h_j], 1)), index) * h_j


@pytest.mark.parametrize("unit", [300.0, 1.0])
def test_sharp_attention_that_standardised_inputs_take_away_is_no_second_cause_of_a_run(unit):
    g = torch.Generator().manual_seed(4)
    x, edges = torch.randn(100, 4, generator=g), torch.randint(0, 100, (2, 500), generator=g)
    batch = Data(x=unit * (x + 2), edge_index=edges, y=x[:, 0] - x[:, 1])
    found = trained(Kin(), batch, lambda output, data: nn.functional.mse_loss(output, data.y), steps=40, lr=5e-3)
    assert [cause.cause for cause in found.root_causes()] == (["feature-scale"] if unit > 1 else [])


class Sales(nn.Module):
    """Whether a price is above the middle one; logits of a raw price are so large that most rows are right, or wrong, to the last bit."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.leave = nn.Linear(4, 32), nn.Linear(32, 2)
        self.attend = nn.ModuleList(TransformerConv(32, 8, heads=4) for _ in range(2))

    def forward(self, data: Data) -> torch.Tensor:
        h = self.enter(data.x).relu()
        for conv in self.attend:
            h = conv(h, data.edge_index)
        answer: torch.Tensor = self.leave(h)
        return answer


@pytest.mark.parametrize("raw", [True, False])
def test_steps_of_a_run_are_judged_by_all_rows_those_that_are_right_from_the_start_too(raw):
    g = torch.Generator().manual_seed(0)
    habit = torch.randn(60, generator=g)
    price = 11 + 1.3 * habit + 0.3 * torch.randn(60, generator=g)
    x = torch.cat([(price.exp() if raw else price - 11)[:, None], torch.randn(60, 3, generator=g)], 1)
    batch = Data(x=x, edge_index=torch.randint(0, 60, (2, 240), generator=g), y=(habit > 0).long())
    found = trained(Sales(), batch, cross_entropy, steps=60, lr=3e-3)
    assert [cause.cause for cause in found.root_causes()] == (["feature-scale"] if raw else [])
    zeros = [s.detail["zeros"] for s in found.signals if s.name == "optimizer.input_share"]
    assert zeros == (pytest.approx([math.log(2)], rel=1e-4) if raw else [])
