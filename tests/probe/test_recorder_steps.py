"""Where steps end: optimizers, closures, scalers, several of each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from gnnstab import Monitor
from gnnstab.probe.attaching.boundary import Boundary
from gnnstab.probe.recorder import Recorder
from gnnstab.records import Finding
from gnnstab.trace import Trace, TraceWriter
from models.convnets import CASES, NODES, WIDTH, Stack, graph, scalar


def record(model: nn.Module, optimizers: list[Any], loop: Any, scaler: Any = None, **options: Any) -> Trace:
    """Run ``loop`` under a recorder with a boundary."""
    with TraceWriter(None) as writer:
        with Recorder(model, writer, **options) as recorder:
            boundary = Boundary(recorder, optimizers, scaler)
            boundary.attach()
            try:
                loop()
            finally:
                boundary.detach()
            assert [e.message for e in recorder.events if e.kind == "tool-failure"] == []
        return writer.read()


def counts(trace: Trace, site: str, layer: str = "convs.0", mode: str = "train") -> list[int]:
    """Entries per step."""
    return [int(c) for rows in trace.sites(layer, site, mode).values() for c in rows["count"]]


def test_an_optimizer_ends_the_step_before_it_moves_the_weights() -> None:
    model, args = CASES[0].make()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    before = [p.detach().clone() for p in model.parameters()]

    def loop() -> None:
        for _ in range(3):
            optimizer.zero_grad(set_to_none=True)
            scalar(model(*args)).backward()
            optimizer.step()

    trace = record(model, [optimizer], loop, full_every=1)
    assert [(row.step, row.lr) for row in trace.steps()] == [(0, 0.01), (1, 0.01), (2, 0.01)]
    (weights,) = trace.sites("convs.0.lin_key.weight", "weight").values()
    index = [name for name, _ in model.named_parameters()].index("convs.0.lin_key.weight")
    assert weights[0]["maximum"] == before[index].max()
    (updates,) = trace.sites("convs.0.lin_key.weight", "update").values()
    assert updates[0]["rms"] == pytest.approx(0.01, rel=0.05), "Adam's first step moves every entry by lr"
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_two_optimizers_after_one_backward_share_a_step() -> None:
    model, args = CASES[0].make()
    first, second = (torch.optim.SGD(conv.parameters(), lr=0.1) for conv in model.convs)

    def loop() -> None:
        for _ in range(2):
            scalar(model(*args)).backward()
            first.step()
            second.step()

    assert counts(record(model, [first, second], loop), "input") == [NODES * WIDTH] * 2


def test_two_backward_passes_from_one_graph_are_two_steps_when_an_optimizer_moves_between() -> None:
    model, args = CASES[0].make()
    first, second = (torch.optim.SGD(conv.lin_skip.parameters(), lr=0.0) for conv in model.convs)

    def loop() -> None:
        output = model(*args)
        output.mean().backward(retain_graph=True)
        first.step()
        output.square().mean().backward()
        second.step()

    trace = record(model, [first, second], loop)
    assert counts(trace, "input") == [NODES * WIDTH]
    assert counts(trace, "grad_output") == [NODES * WIDTH] * 2


def test_a_closure_ends_the_step_when_it_returns() -> None:
    model, args = CASES[0].make()
    optimizer = torch.optim.Adam(model.parameters())

    def closure() -> Any:
        optimizer.zero_grad()
        loss = scalar(model(*args))
        loss.backward()
        return loss

    def loop() -> None:
        for _ in range(2):
            optimizer.step(closure)
            optimizer.step(closure=closure)

    trace = record(model, [optimizer], loop, full_every=1)
    assert counts(trace, "input") == [NODES * WIDTH] * 4
    assert len(trace.sites("convs.0.lin_key.weight", "update").popitem()[1]) == 4


def test_lbfgs_evaluates_many_times_within_one_step() -> None:
    model, args = CASES[0].make()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)
    calls = []

    def closure() -> Any:
        calls.append(1)
        optimizer.zero_grad()
        loss = scalar(model(*args))
        loss.backward()
        return loss

    trace = record(model, [optimizer], lambda: optimizer.step(closure))
    assert len(calls) > 1
    assert counts(trace, "input") == [len(calls) * NODES * WIDTH]


class Overflowing(Stack):
    """Its gradient passes the range of fp32 when the loss is scaled a lot."""

    def forward(self, *args: Any) -> Any:
        return super().forward(*args) * 1e35


def test_a_step_that_the_scaler_skips_is_recorded_as_skipped() -> None:
    torch.manual_seed(0)
    model, args = Overflowing(1), graph()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, backoff_factor=2.0**-13)

    def loop() -> None:
        for _ in range(3):
            optimizer.zero_grad()
            scaler.scale(model(*args).mean()).backward()
            scaler.step(optimizer)
            scaler.update()

    trace = record(model, [optimizer], loop, scaler)
    assert [(row.skipped, row.scale) for row in trace.steps()] == [(True, 2.0**16), (False, 8.0), (False, 8.0)]
    assert trace.events() == ()
    assert "update" not in vars(scaler)


def test_gradients_are_recorded_unscaled() -> None:
    def one(scale: float) -> Trace:
        model, args = CASES[0].make()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=scale > 1)

        def loop() -> None:
            scaler.scale(scalar(model(*args))).backward()
            scaler.step(optimizer)
            scaler.update()

        return record(model, [optimizer], loop, scaler)

    plain, scaled = one(1.0), one(1024.0)
    for layer, site in (
        ("convs.0", "grad_output"),
        ("convs.1", "grad_input"),
        ("convs.1.lin_value.weight", "weight_grad"),
    ):
        (expected,), (found,) = (list(t.sites(layer, site).values()) for t in (plain, scaled))
        assert found[0]["rms"] == pytest.approx(expected[0]["rms"], rel=1e-6)
    assert scaled.steps()[0].grad_norm == pytest.approx(plain.steps()[0].grad_norm, rel=1e-6)


def test_evaluation_between_steps_belongs_to_the_next_step() -> None:
    model, args = CASES[0].make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def loop() -> None:
        for _ in range(2):
            model.train()
            scalar(model(*args)).backward()
            optimizer.step()
            model.eval()
            with torch.no_grad():
                for _ in range(5):
                    model(*args)

    trace = record(model, [optimizer], loop)
    assert counts(trace, "input") == [NODES * WIDTH] * 2
    assert counts(trace, "input", mode="eval") == [5 * NODES * WIDTH] * 2


def test_torch_func_transforms_are_named_as_unseen() -> None:
    model, args = CASES[0].make()
    values = {name: p.detach() for name, p in model.named_parameters()}

    def loss(values: Any) -> Any:
        return scalar(torch.func.functional_call(model, values, args))

    expected = torch.func.grad(loss)(values)
    with TraceWriter(None) as writer, Recorder(model, writer) as recorder:
        found = torch.func.grad(loss)(values)
        recorder.end_step()
        assert recorder.events == []
        assert "torch.func" in next(b.reason for b in recorder.coverage.blind if b.layer == "convs.0")
        assert recorder.coverage.layers_observed == 0
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_double_backward_and_higher_order_gradients() -> None:
    model, (x, *rest) = CASES[0].make()
    x.requires_grad_()
    with TraceWriter(None) as writer, Recorder(model, writer) as recorder:
        (gradient,) = torch.autograd.grad(scalar(model(x, *rest)), x, create_graph=True)
        gradient.square().sum().backward()
        recorder.end_step()
        assert recorder.events == []
    assert x.grad is not None


@pytest.mark.parametrize("stays", [False, True])
def test_the_loss_of_a_batch_that_an_unknown_scaler_skips_goes_with_its_gradients(stays: bool) -> None:
    """One batch of huge targets overflows and is skipped; in the twin all later ones are as huge, within fp16's range."""
    torch.manual_seed(0)
    model, x = nn.Linear(4, 1), torch.randn(16, 4)
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=1e-3), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    told: list[Finding] = []
    with Monitor(model, optimizer=optimizer, on_finding=told.append) as monitor:
        for step in range(60):
            far = 1e5 if step == 40 else 30.0 if stays and step > 40 else 0.1
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.float16):
                output = model(x)
            loss = (output.float() - far).square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update(2.0**10)
            monitor.loss(loss)
    assert {f.code for f in told if f.severity in ("warning", "error")} == ({"GS601"} if stays else set())
