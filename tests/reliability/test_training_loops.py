"""The many shapes of a training loop: every one is recorded in whole steps and runs as it would alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.utils.checkpoint import checkpoint

import gnnstab
from side_by_side import Loop, Net, Run, codes, graph, unnoticed

STEPS = 6

Step = Callable[[Run, nn.Module, torch.optim.Optimizer, int], None]
Make = Callable[[Any], torch.optim.Optimizer]


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1e-2)


def loss_of(model: nn.Module, number: int) -> Tensor:
    return model(*graph(number)).square().mean()


def recorded(run: Run) -> list[int]:
    """Steps of the trace."""
    with run.monitor.trace as trace:
        return [row.step for row in trace.steps()]


def extremes(run: Run, layer: str, site: str) -> list[list[float]]:
    """[minimum, maximum, rms, count] per step of one site of a trained layer."""
    with run.monitor.trace as trace:
        (rows,) = trace.sites(layer=layer, site=site, mode="train", call=0).values()
        return [list(row) for row in rows[["minimum", "maximum", "rms", "count"]].tolist()]


def loop_of(step: Step, kind: type[Net] = Net, make: Make = sgd, steps: int = STEPS) -> Loop:
    """The ordinary loop around one step; everything that the step leaves behind must be the same with a monitor."""

    def loop(run: Run) -> None:
        model = kind()
        optimizer = make(model.parameters())
        with run.watching(model, optimizer=optimizer):
            for number in range(steps):
                step(run, model, optimizer, number)
            run.keep(*model.parameters())

    return loop


def recorded_whole(loop: Loop, steps: int = STEPS) -> Run:
    """Run the loop with and without a monitor; every step is in the trace, and nothing was warned about."""
    run = unnoticed(loop)
    assert recorded(run) == list(range(steps)) and run.warned == []
    return run


def ordinary(run: Run, model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    optimizer.zero_grad()
    loss = loss_of(model, number)
    loss.backward()
    run.keep(loss)
    run.keep_gradients(model)
    optimizer.step()


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_set_to_none_or_to_zero(set_to_none: bool) -> None:
    def step(run: Run, model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
        optimizer.zero_grad(set_to_none=set_to_none)
        loss_of(model, number).backward()
        run.keep_gradients(model)
        optimizer.step()

    recorded_whole(loop_of(step, make=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2)))


def test_accumulated_gradients_are_one_step() -> None:
    def step(run: Run, model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
        for part in range(4):
            (loss_of(model, 4 * number + part) / 4).backward()
        run.keep_gradients(model)
        optimizer.step()
        optimizer.zero_grad()

    counts = [row[3] for row in extremes(recorded_whole(loop_of(step)), "first", "input")]
    assert counts == [4 * graph()[0].numel()] * STEPS, "a row covers all forwards of its step"


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing(use_reentrant: bool) -> None:
    """The second forward, inside the backward, is not counted again; gradients of checkpointed layers are seen."""

    class Checkpointed(Net):
        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            # The reentrant form needs an input that requires a gradient.
            hidden = torch.relu(self.first(x.requires_grad_(), edge_index))
            return self.out(checkpoint(self.second, hidden, edge_index, use_reentrant=use_reentrant))

    run, plain = recorded_whole(loop_of(ordinary, Checkpointed)), unnoticed(loop_of(ordinary))
    for layer in ("first", "second"):
        for site in ("output", "score", "grad_output"):
            assert extremes(run, layer, site) == extremes(plain, layer, site), (layer, site)


def test_several_backward_passes_are_one_step() -> None:
    def step(run: Run, model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
        optimizer.zero_grad()
        output = model(*graph(number))
        output.mean().backward(retain_graph=True)
        output.square().mean().backward()
        run.keep_gradients(model)
        optimizer.step()

    recorded_whole(loop_of(step))


def test_second_derivatives() -> None:
    """A gradient penalty differentiates through the backward pass."""

    def step(run: Run, model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
        optimizer.zero_grad()
        x, edge_index = graph(number)
        x.requires_grad_()
        output = model(x, edge_index).square().mean()
        (slope,) = torch.autograd.grad(output, x, create_graph=True)
        (output + slope.square().sum()).backward()
        run.keep(slope)
        run.keep_gradients(model)
        optimizer.step()

    recorded_whole(loop_of(step))


def test_two_optimizers_after_one_backward_share_a_step() -> None:
    def loop(run: Run) -> None:
        model = Net()
        lower = torch.optim.SGD(model.first.parameters(), lr=1e-2)
        upper = torch.optim.Adam([*model.second.parameters(), *model.out.parameters()], lr=1e-3)
        with run.watching(model, optimizer=[lower, upper]):
            for number in range(STEPS):
                lower.zero_grad()
                upper.zero_grad()
                loss_of(model, number).backward()
                run.keep_gradients(model)
                lower.step()
                upper.step()
            run.keep(*model.parameters())

    recorded_whole(loop)


def test_two_optimizers_that_take_turns() -> None:
    def loop(run: Run) -> None:
        model = Net()
        optimizers = [torch.optim.SGD(part.parameters(), lr=1e-2) for part in (model.first, model.second)]
        with run.watching(model, optimizer=optimizers):
            for number in range(STEPS):
                for optimizer in optimizers:
                    model.zero_grad()
                    loss_of(model, number).backward()
                    run.keep_gradients(model)
                    optimizer.step()

    recorded_whole(loop, 2 * STEPS)


@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: torch.optim.LBFGS(parameters, lr=0.1, max_iter=4),
        sgd,
        lambda parameters: torch.optim.Adam(parameters, lr=1e-3, foreach=True),
    ],
    ids=["LBFGS", "SGD", "Adam"],
)
def test_closures(make: Make) -> None:
    def step(run: Run, model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, number)
            loss.backward()
            run.keep(loss)
            run.keep_gradients(model)
            return loss

        run.keep(optimizer.step(closure))

    recorded_whole(loop_of(step, make=make))


def test_functional_transforms() -> None:
    """`torch.func` hands layers tensors without values: the call is left out, named as unseen, and harms nothing."""

    def loop(run: Run) -> None:
        model = Net(dropout=0.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        parameters = {name: p.detach() for name, p in model.named_parameters()}
        x, edge_index = graph()

        def objective(weights: dict[str, Tensor], one: Tensor) -> Tensor:
            return functional_call(model, weights, (one, edge_index)).square().mean()

        with run.watching(model, optimizer=optimizer):
            run.keep(functional_call(model, parameters, (x, edge_index)))
            run.keep(*grad(objective)(parameters, x).values())
            run.keep(vmap(objective, in_dims=(None, 0))(parameters, torch.stack([x, 2 * x])))
            run.keep(*vmap(grad(objective), in_dims=(None, 0))(parameters, torch.stack([x, 2 * x])).values())
            for number in range(STEPS):
                optimizer.zero_grad()
                loss_of(model, number).backward()
                run.keep_gradients(model)
                optimizer.step()

    run = recorded_whole(loop)
    assert any("torch.func" in blind.reason for blind in run.monitor.coverage.blind)
    found = run.monitor.diagnose()
    assert not any(cause.status in ("root-cause", "contributing") for cause in found.causes)
    assert {f.code for f in found.findings if f.severity != "info"} <= {"GS901"}, "what was not seen, and nothing else"


@pytest.mark.filterwarnings("ignore:gnnstab. the optimizer holds no parameter")
@pytest.mark.parametrize("instead", [True, False])
def test_an_ensemble_whose_parameters_stand_in_the_place_of_the_models(instead: bool) -> None:
    """Who trains is not seen; a model that runs with its own parameters, which no optimizer holds, is not trained."""
    models = [Net(dropout=0.0) for _ in range(2)]
    model, (x, edge_index) = models[0], graph()
    stacked, buffers = stack_module_state(models)
    weights = {name: p.detach().requires_grad_() for name, p in stacked.items()}
    optimizer = torch.optim.SGD(weights.values(), lr=1e-2)
    with gnnstab.Monitor(model, optimizer=optimizer, schedule=2) as monitor:
        for _ in range(3):
            optimizer.zero_grad()
            if instead:
                output = vmap(lambda w, b: functional_call(model, (w, b), (x, edge_index)))(weights, buffers)
            else:
                output = model(x, edge_index)
            loss = output.square().mean()
            loss.backward()
            monitor.loss(loss)
            optimizer.step()
    found = codes(monitor, "info")
    assert ("GS604" in found) is not instead and "GS902" not in found


def test_without_an_optimizer_steps_are_said() -> None:
    def loop(run: Run) -> None:
        model = Net()
        with run.watching(model) as monitor:
            for number in range(STEPS):
                loss = loss_of(model, number)
                gradients = torch.autograd.grad(loss, list(model.parameters()))
                run.keep(loss, *gradients)
                with torch.no_grad():
                    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                        parameter -= 1e-2 * gradient
                if monitor is not None:
                    monitor.step(loss)

    run = recorded_whole(loop)
    with run.monitor.trace as trace:
        assert all(row.loss is not None for row in trace.steps())


def test_validation_between_steps_is_kept_apart() -> None:
    def loop(run: Run) -> None:
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        with run.watching(model, optimizer=optimizer):
            for number in range(STEPS):
                model.train()
                optimizer.zero_grad()
                loss_of(model, number).backward()
                optimizer.step()
                model.eval()
                with torch.no_grad():
                    run.keep(model(*graph(100 + number)))
                with torch.inference_mode():
                    run.keep(model(*graph(200 + number)))

    run = unnoticed(loop)
    assert run.warned == []
    with run.monitor.trace as trace:
        modes = {key.mode for key in trace.keys().values() if key.site == "score"}
    assert modes == {"train", "eval"}


def test_healthy_loops_have_no_finding() -> None:
    def step(run: Run, model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
        ordinary(run, model, optimizer, number % 4)

    loop = loop_of(step, make=lambda parameters: torch.optim.Adam(parameters, lr=1e-3), steps=40)
    assert codes(unnoticed(loop).monitor) == []
