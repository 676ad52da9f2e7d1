"""What the recorder writes equals a plain recomputation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch_geometric.nn import TransformerConv
from torch_geometric.utils import softmax

from gnnstab.probe.recorder import Recorder
from gnnstab.trace import Trace, TraceWriter
from models.convnets import CASES, NODES, WIDTH, Shared, Stack, graph, scalar


def row(trace: Trace, layer: str, site: str, *, mode: str = "train", call: int = 0, step: int = 0) -> Any:
    """One row of one series."""
    (rows,) = trace.sites(layer, site, mode, call).values()
    return next(r for r in rows if r["step"] == step)


def assert_is(found: Any, *tensors: Tensor) -> None:
    """The row holds the numbers of these tensors, extremes exactly."""
    values = torch.cat([t.detach().double().flatten() for t in tensors])
    assert found["minimum"] == values.min()
    assert found["maximum"] == values.max()
    assert found["rms"] == pytest.approx(float(values.square().mean().sqrt()), rel=1e-6)
    assert found["count"] == values.numel()
    assert found["non_finite"] == 0


def plain_attention(conv: Any, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None) -> tuple[Tensor, Tensor]:
    """Scores and weights of a TransformerConv, written out."""
    heads, channels = conv.heads, conv.out_channels
    query = conv.lin_query(x).view(-1, heads, channels)[edge_index[1]]
    key = conv.lin_key(x).view(-1, heads, channels)[edge_index[0]]
    if edge_attr is not None:
        key = key + conv.lin_edge(edge_attr).view(-1, heads, channels)
    score = (query * key).sum(-1) / math.sqrt(channels)
    return score, softmax(score, edge_index[1], num_nodes=len(x))


@pytest.mark.parametrize("options", [{}, {"concat": True}, {"beta": True}, {"edge_dim": None}], ids=str)
def test_every_site_of_one_step(options: dict[str, Any]) -> None:
    torch.manual_seed(1)
    model = Stack(1, **options)
    x, edge_index, edge_attr = graph()
    attributes = edge_attr if options.get("edge_dim", 3) else None
    x.requires_grad_()
    conv = model.convs[0]
    seen: dict[str, Tensor] = {}
    conv.register_forward_hook(lambda module, args, out: seen.update(out=out.detach().clone()))
    with TraceWriter(None) as writer, Recorder(model, writer) as recorder:
        out = model(x, edge_index, attributes)
        scalar(out).backward()
        recorder.end_step()
        trace = writer.read()
    score, attention = plain_attention(conv, x, edge_index, attributes)
    assert_is(row(trace, "convs.0", "input"), x)
    assert_is(row(trace, "convs.0", "output"), seen["out"])
    assert_is(row(trace, "convs.0", "score"), score)
    assert_is(row(trace, "convs.0", "attention"), attention)
    assert_is(row(trace, "convs.0", "grad_input"), x.grad)
    expected = torch.where(seen["out"] > 0, 2 * out.detach() / out.numel(), 0.0)
    assert row(trace, "convs.0", "grad_output")["rms"] == pytest.approx(
        float(expected.square().mean().sqrt()), rel=1e-5
    )
    if options.get("beta"):
        gate = row(trace, "convs.0", "gate")
        assert 0 < gate["minimum"] <= gate["maximum"] < 1
        assert gate["count"] == NODES
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters()))
    assert trace.steps()[0].grad_norm == pytest.approx(norm, rel=1e-6)
    for name, parameter in model.named_parameters():
        assert_is(row(trace, name, "weight_grad"), parameter.grad)


def test_large_tensors_are_reduced_in_place() -> None:
    torch.manual_seed(1)
    x, edge_index, edge_attr = graph(2000, 6000)
    model = Stack(1)
    conv = model.convs[0]
    with torch.no_grad(), TraceWriter(None) as writer, Recorder(model, writer) as recorder:
        model(x, edge_index, edge_attr)
        recorder.end_step()
        trace = writer.read()
        score, attention = plain_attention(conv, x, edge_index, edge_attr)
    assert_is(row(trace, "convs.0", "input", mode="train-nograd"), x)
    assert_is(row(trace, "convs.0", "score", mode="train-nograd"), score)
    assert_is(row(trace, "convs.0", "attention", mode="train-nograd"), attention)


def test_batches_of_changing_size() -> None:
    torch.manual_seed(1)
    model = Stack(2)
    batches = [graph(nodes, 3 * nodes) for nodes in (5, 9, 5, 3000, 1, 9)]
    with TraceWriter(None) as writer, Recorder(model, writer) as recorder:
        for batch in batches:
            scalar(model(*batch)).backward()
            recorder.end_step()
        trace = writer.read()
    for step, (x, edge_index, edge_attr) in enumerate(batches):
        assert_is(row(trace, "convs.0", "input", step=step), x)
        score, _ = plain_attention(model.convs[0], x, edge_index, edge_attr)
        assert_is(row(trace, "convs.0", "score", step=step), score)


def test_many_forwards_in_one_step_are_merged() -> None:
    torch.manual_seed(1)
    model, batches = Stack(1), [graph(nodes, 20) for nodes in (4, 7, 4, 2500)] * 30
    with torch.no_grad(), TraceWriter(None) as writer, Recorder(model, writer) as recorder:
        model.eval()
        for batch in batches:
            model(*batch)
        recorder.end_step()
        trace = writer.read()
    (rows,) = trace.sites("convs.0", "input").values()
    assert len(rows) == 1
    assert_is(rows[0], *(batch[0] for batch in batches))
    assert {key.call for key in trace.keys().values()} == {0}


def test_a_shared_layer_is_recorded_call_by_call() -> None:
    torch.manual_seed(1)
    model, (x, edge_index, _) = Shared(), graph()
    with TraceWriter(None) as writer, Recorder(model, writer) as recorder:
        for _ in range(2):
            scalar(model(x, edge_index)).backward()
        recorder.end_step()
        trace = writer.read()
    inputs = [x]
    for _ in range(2):
        inputs.append(model.conv(inputs[-1], edge_index).tanh())
    for call, expected in enumerate(inputs):
        assert_is(row(trace, "conv", "input", call=call), expected, expected)
    assert trace.sites("conv", "input", "train", 3) == {}


def test_an_interrupted_forward_does_not_shift_the_calls() -> None:
    class Failing(Shared):
        def forward(self, x: Tensor, edge_index: Tensor, fail: bool = False) -> Tensor:
            if fail:
                self.conv(x, edge_index)
                raise ValueError("interrupted")
            return super().forward(x, edge_index)

    torch.manual_seed(1)
    model, (x, edge_index, _) = Failing(), graph()
    with TraceWriter(None) as writer, Recorder(model, writer) as recorder:
        with pytest.raises(ValueError, match="interrupted"):
            model(x, edge_index, fail=True)
        model(x, edge_index)
        recorder.end_step()
        trace = writer.read()
    assert row(trace, "conv", "input", call=0)["count"] == 2 * x.numel()
    assert {key.call for key in trace.keys().values()} == {0, 1, 2}


def test_modes_are_told_apart() -> None:
    model, args = CASES[0].make()
    with TraceWriter(None) as writer, Recorder(model, writer) as recorder:
        for training in (True, False):
            model.train(training)
            model(*args)
            with torch.no_grad():
                model(*args)
        recorder.end_step()
        trace = writer.read()
    assert {key.mode for key in trace.sites("convs.0", "score")} == {"train", "train-nograd", "eval", "eval-grad"}


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(reentrant: bool) -> None:
    class Checkpointed(Stack):
        def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None = None) -> Tensor:
            for conv in self.convs:
                x = checkpoint(conv, x, edge_index, edge_attr, use_reentrant=reentrant).relu()
            return x

    def gradients(model: nn.Module, recorder: Recorder | None) -> list[Tensor]:
        torch.manual_seed(1)
        x, edge_index, edge_attr = graph()
        scalar(model(x.requires_grad_(), edge_index, edge_attr)).backward()
        if recorder is not None:
            recorder.end_step()
        return [p.grad for p in model.parameters()]

    torch.manual_seed(0)
    model = Checkpointed(2)
    expected = [g.clone() for g in gradients(model, None)]
    model.zero_grad()
    with TraceWriter(None) as writer, Recorder(model, writer) as recorder:
        for one, other in zip(gradients(model, recorder), expected, strict=True):
            assert torch.equal(one, other)
        trace = writer.read()
    for layer in ("convs.0", "convs.1"):
        for site in ("score", "output", "grad_output", "grad_input"):
            found = row(trace, layer, site)
            assert found["count"] == {"score": 80}.get(site, NODES * WIDTH), (layer, site)
    assert {key.call for key in trace.keys().values()} == {0}


def test_gradient_accumulation_is_one_step() -> None:
    model, args = CASES[0].make()
    with TraceWriter(None) as writer, Recorder(model, writer) as recorder:
        for _ in range(4):
            scalar(model(*args)).backward()
        recorder.end_step()
        trace = writer.read()
    for site in ("input", "grad_output"):
        assert row(trace, "convs.1", site)["count"] == 4 * NODES * WIDTH


def test_float64_and_half_precision() -> None:
    for dtype, scale in ((torch.float64, 1e200), (torch.bfloat16, 1.0), (torch.float16, 100.0)):
        torch.manual_seed(1)
        x, edge_index, _ = graph(1500, 20)
        conv = TransformerConv(WIDTH, WIDTH, bias=False).to(dtype)
        x = x.to(dtype) * scale
        with torch.no_grad(), TraceWriter(None) as writer, Recorder(conv, writer) as recorder:
            conv(x[:10], edge_index % 10)
            recorder.end_step()
            conv(x, edge_index)
            recorder.end_step()
            trace = writer.read()
        small, large = (row(trace, "TransformerConv", "input", mode="train-nograd", step=step) for step in (0, 1))
        if dtype is torch.float64:
            # Squares of 1e200 leave float64; the largest entry is the bound that is still known.
            assert small["maximum"] == x[:10].max()
            assert small["rms"] == x[:10].abs().max()
            continue
        assert_is(small, x[:10])
        assert large["rms"] == pytest.approx(float(x.double().square().mean().sqrt()), rel=1e-3)


def test_empty_graphs() -> None:
    model = Stack(2, edge_dim=None)
    x, empty = torch.randn(4, WIDTH), torch.empty(2, 0, dtype=torch.long)
    with TraceWriter(None) as writer, Recorder(model, writer, full_every=1) as recorder:
        scalar(model(x, empty)).backward()
        recorder.end_step()
        scalar(model(torch.empty(0, WIDTH), empty)).backward()
        recorder.end_step()
        assert recorder.events == []
        trace = writer.read()
    assert_is(row(trace, "convs.0", "input"), x)


def test_full_tier_and_updates() -> None:
    model, args = CASES[0].make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    before = model.convs[0].lin_value.weight.detach().clone()
    with TraceWriter(None) as writer, Recorder(model, writer, full_every=2) as recorder:
        for _ in range(3):
            optimizer.zero_grad()
            scalar(model(*args)).backward()
            recorder.end_step(moves=True)
            optimizer.step()
            recorder.after_update()
            if recorder.step == 1:
                after = model.convs[0].lin_value.weight.detach().clone()
        trace = writer.read()
    assert {m.step for m in trace.measures("attention.entropy", "convs.0")} == {0, 2}
    name = "convs.0.lin_value.weight"
    assert_is(row(trace, name, "weight"), before)
    assert_is(row(trace, name, "update"), after - before)
    heads = {m.head for m in trace.measures("score.within_std", "convs.0")}
    assert heads == {-1, 0, 1}
    assert trace.measures("feature.rms")[0].value == pytest.approx(float(args[0].square().mean().sqrt()), rel=1e-5)


def test_layers_outside_of_the_model_forward_count_for_themselves() -> None:
    model, (x, edge_index, edge_attr) = CASES[0].make()
    with TraceWriter(None) as writer, Recorder(model, writer) as recorder:
        for _ in range(3):
            model.convs[0](x, edge_index, edge_attr)
        recorder.end_step()
        trace = writer.read()
    assert row(trace, "convs.0", "input")["count"] == 3 * x.numel()
    assert [blind.layer for blind in recorder.coverage.blind if blind.site == "output"] == ["convs.1"]
