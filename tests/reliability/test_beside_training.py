"""What happens beside the ordinary step: evaluations with tangents, and updates within the backward."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, jvp

import gnnstab
from gnnstab.errors import GnnstabWarning
from side_by_side import Net, Run, codes, graph, unnoticed

STEPS = 6


def with_dual_input(model: nn.Module, x: Tensor, edge_index: Tensor) -> Any:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(model(forward_ad.make_dual(x, torch.ones_like(x)), edge_index)).tangent


def with_dual_parameters(model: nn.Module, x: Tensor, edge_index: Tensor) -> Any:
    with torch.no_grad(), forward_ad.dual_level():
        own = {k: forward_ad.make_dual(p.detach(), torch.ones_like(p)) for k, p in model.named_parameters()}
        return forward_ad.unpack_dual(functional_call(model, own, (x, edge_index))).tangent


def with_jvp(model: nn.Module, x: Tensor, edge_index: Tensor) -> Any:
    return jvp(lambda z: model(z, edge_index), (x,), (torch.ones_like(x),))[1]


@pytest.mark.parametrize("evaluate", [with_dual_input, with_dual_parameters, with_jvp])
def test_forward_mode_evaluations_are_left_alone(evaluate: Callable[..., Tensor]) -> None:
    def loop(run: Run) -> None:
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        with run.watching(model, optimizer=optimizer):
            for number in range(STEPS):
                optimizer.zero_grad()
                model(*graph(number)).square().mean().backward()
                run.keep(evaluate(model, *graph(number)))
                optimizer.step()
            run.keep(*model.parameters())

    run = unnoticed(loop)
    assert run.warned == []
    with run.monitor.trace as trace:
        assert [row.step for row in trace.steps()] == list(range(STEPS))
        (rows,) = trace.sites(layer="first", site="input", mode="train", call=0).values()
    # The last forward is measured once more at the end of the run, under the number of its step.
    assert rows["count"][:-1].tolist() == [graph()[0].numel()] * (STEPS - 1), "the evaluation is no part of the step"
    assert not {"GS901", "GS902"} & set(codes(run.monitor))


def test_optimizers_that_move_within_the_backward() -> None:
    def loop(run: Run) -> None:
        model = Net()
        optimizers = {p: torch.optim.SGD([p], lr=1e-2) for p in model.parameters()}

        def move(parameter: Tensor) -> None:
            run.keep(parameter.grad)
            optimizers[parameter].step()
            optimizers[parameter].zero_grad()

        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(move)
        with run.watching(model, optimizer=list(optimizers.values())):
            for number in range(STEPS):
                run.keep(model(*graph(number)).square().mean())
                model(*graph(number)).square().mean().backward()
            run.keep(*model.parameters())

    run = unnoticed(loop)
    with run.monitor.trace as trace:
        assert [row.step for row in trace.steps()] == list(range(STEPS))
        assert all(row.grad_norm is not None and row.grad_norm > 0 for row in trace.steps())
        seen = {series.layer for series in trace.sites(site="weight_grad")}
    names = {name for name, _ in Net().named_parameters()}
    assert seen == names
    assert "GS604" not in codes(run.monitor)


class OwnBatch:
    """A batch of a user's own class, with a large table beside the graph."""

    def __init__(self, number: int, entries: int) -> None:
        self.graph, self.table = graph(number), torch.zeros(entries)


class TakesOwnBatch(Net):
    def forward(self, batch: OwnBatch) -> Tensor:
        return super().forward(*batch.graph)


@pytest.mark.parametrize(("entries", "copied"), [(40 * 2**20, False), (2**10, True)], ids=["160 MB", "4 kB"])
def test_large_arguments_of_an_own_class_are_lent(entries: int, copied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[int] = []
    plain = Tensor.__deepcopy__

    def counted(tensor: Tensor, memo: dict[int, Any]) -> Any:
        copies.append(tensor.numel())
        return plain(tensor, memo)

    monkeypatch.setattr(Tensor, "__deepcopy__", counted)

    def loop(run: Run) -> None:
        model = TakesOwnBatch()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        with run.watching(model, optimizer=optimizer):
            for number in range(STEPS):
                optimizer.zero_grad()
                model(OwnBatch(number, entries)).square().mean().backward()
                optimizer.step()
            run.keep(*model.parameters())

    assert unnoticed(loop).warned == []
    assert (entries in copies) is copied


def skipping(run: Run, bad: set[int], steps: int) -> None:
    """A loop whose loss has an undefined derivative in the steps ``bad``, and which updates only with finite gradients."""
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with run.watching(model, optimizer=optimizer):
        for number in range(steps):
            optimizer.zero_grad()
            output = model(*graph(number))
            loss = output.square().mean()
            if number in bad:
                loss = loss + (output - output.detach()).abs().sqrt().sum()
            loss.backward()
            if all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None):
                optimizer.step()
        run.keep(*model.parameters())


@pytest.mark.parametrize("options", [{"schedule": 50}, {"budget": 1e-9}], ids=["recorded", "left out"])
def test_updates_that_the_loop_skips_for_their_gradients_are_told(options: dict[str, Any]) -> None:
    run = Run(monitored=True, options={"on_finding": "ignore", **options})
    # Where a step had no loss by the time it was looked for, every step is recorded, which is said.
    told = pytest.warns(GnnstabWarning, match="every step is recorded") if "budget" in options else nullcontext()
    with told:
        skipping(run, {20, 22}, 26)
    found = {finding.code: finding for finding in run.monitor.diagnose().findings}
    assert found["GS502"].step == 20
    assert "stage gradient" in found["GS502"].message
    assert "skipped the update of 2 steps" in found["GS502"].message
    with run.monitor.trace as trace:
        assert [row.step for row in trace.steps()] == list(range(26))


def test_finite_gradients_that_are_dropped_are_no_step() -> None:
    def loop(run: Run) -> None:
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        with run.watching(model, optimizer=optimizer):
            for number in range(STEPS):
                optimizer.zero_grad()
                x, edge_index = graph(number)
                x = x.clone().requires_grad_()
                run.keep(*torch.autograd.grad(model(x, edge_index).sum(), x))
                model(x.detach(), edge_index).square().mean().backward()
                optimizer.step()
            run.keep(*model.parameters())

    run = unnoticed(loop)
    assert run.warned == []
    with run.monitor.trace as trace:
        assert [row.step for row in trace.steps()] == list(range(STEPS))
        assert "dropped.steps" not in trace.meta


@pytest.mark.parametrize("way", ["output", "no_grad", "exception", "none"])
def test_forwards_that_the_loop_throws_away_are_looked_at(way: str) -> None:
    """From step 4 on every training forward answers with NaN, and the loop leaves it out."""
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore") as monitor:
        for number in range(9):
            x, edge_index = graph(number)
            broken = number >= 4 and way != "none"
            optimizer.zero_grad()
            with torch.set_grad_enabled(not broken or way != "no_grad"):
                output = model(x * math.nan if broken else x, edge_index)
            if broken:
                with contextlib.suppress(ValueError):
                    torch.distributions.Categorical(logits=output, validate_args=way == "exception")
                continue
            output.square().mean().backward()
            optimizer.step()
    told = [f.cause for f in monitor.diagnose(select=["GS502"]).findings]
    assert told == ([] if way == "none" else ["non-finite-data"])


@pytest.mark.parametrize("broken", [True, False])
def test_a_scaler_that_skips_every_step_finds_no_scale(broken: bool) -> None:
    """Its twin starts at the same scale, which one step is enough to halve."""
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    with gnnstab.Monitor(model, optimizer=optimizer, scaler=scaler, on_finding="ignore") as monitor:
        for number in range(40):
            optimizer.zero_grad()
            output = model(*graph(number))
            loss = output.square().mean()
            if broken:
                loss = loss + (output - output).square().sum().sqrt()  # Its derivative at zero is infinite.
            elif number == 0:
                loss = loss * 1e38
            scaler.scale(loss).backward()
            monitor.loss(loss)
            scaler.step(optimizer)
            scaler.update()
    told = {f.cause: f.message for f in monitor.diagnose(select=["GS502"]).findings}
    assert list(told) == (["undefined-operation"] if broken else []), told
