"""The run is left as it is while a step of it is watched or repeated, whatever the loop around it does."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data

import gnnstab
from gnnstab.errors import GnnstabWarning, UnstableError, UsageError
from gnnstab.probe.operations.repeat import objective_of, repeat
from gnnstab.probe.replaying.replica import ForwardInputs
from gnnstab.report.summary import first_non_finite
from models.programs import Net, batch, mse, spoilt


def log_loss(out: Tensor, b: Any) -> Tensor:
    return -(out * 300).softmax(-1).log().mean()


def operation(monitor: gnnstab.Monitor) -> dict[str, Any]:
    found = [e.detail["operation"] for e in monitor.trace.events() if e.detail.get("operation")]
    assert found, [e.message for e in monitor.trace.events()]
    return found[0]


class Dropped(Net):
    def forward(self, data: Any) -> Any:
        return F.dropout(super().forward(data), 0.3, self.training)


def trained(monitored: bool, loss: Any, told: bool, steps: int = 4) -> tuple[list[Tensor], Tensor]:
    torch.manual_seed(0)
    model, data = Dropped(), batch()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    monitor = gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore", loss=loss if told else None)
    if monitored:
        monitor.__enter__()
    seen = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss(model(data), data)
        value.backward()
        seen += [value.detach().clone(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
        optimizer.step()
        if monitored:
            monitor.loss(value)
    if monitored:
        monitor.__exit__(None, None, None)
        assert any(e.detail.get("operation") for e in monitor.trace.events())
    return [*seen, *(p.detach().clone() for p in model.parameters())], torch.get_rng_state()


def barely_bad(out: Tensor, b: Any) -> Tensor:
    """Not finite, with gradients that are: the run goes on."""
    return out.square().mean() + (b.y * 0).sum().log()


@pytest.mark.parametrize("loss", [log_loss, barely_bad])
@pytest.mark.parametrize("told", [False, True])
def test_a_watched_run_is_the_same_bit_for_bit(loss: Any, told: bool) -> None:
    plain, generator = trained(False, loss, told)
    watched, same = trained(True, loss, told)
    assert torch.equal(generator, same)
    assert all(torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)) for a, b in zip(plain, watched, strict=True))
    assert all(torch.equal(a.isnan(), b.isnan()) for a, b in zip(plain, watched, strict=True))
    assert torch._C._len_torch_dispatch_stack() == 0


def test_the_finding_comes_before_the_weights_move() -> None:
    torch.manual_seed(0)
    model, data = Net(), batch()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    before = [p.detach().clone() for p in model.parameters()]
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="raise", loss=log_loss) as monitor:
        log_loss(model(data), data).backward()
        with pytest.raises(UnstableError, match=r"softmax` gave 0 .*log_softmax"):
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert operation(monitor)["how"] == "repeated"


class Rooted(Net):
    """Zeros under a root whose derivative is infinite there; one step in three has them."""

    def forward(self, data: Any) -> Any:
        out = super().forward(data)
        return out + (out * data.mask.float()).abs().sqrt()


def test_a_scalar_computed_after_the_loss_is_not_taken_for_it() -> None:
    torch.manual_seed(0)
    model = Rooted()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    labels = torch.arange(12) % 4
    closed = torch.ones(12, 4, dtype=torch.bool)
    closed[5] = False
    told: list[Any] = []
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding=told.append) as monitor:
        for data in (batch(), batch(mask=closed), batch(), batch()):
            optimizer.zero_grad()
            out = model(data)
            loss = F.cross_entropy(out, labels)
            (out.argmax(-1) == labels).float().mean()  # the accuracy, for a log
            loss.backward()
            optimizer.step()
            monitor.loss(loss)
    assert operation(monitor)["node"].startswith("Sqrt")
    assert [finding.step for finding in told if finding.code == "GS502"] == [1], "the weights that follow are no news"
    assert "eps inside" in told[-1].message


class Penalised(Net):
    """Leaves a penalty for the loss on itself; its output is finite all the same."""

    def forward(self, data: Any) -> Any:
        out = super().forward(data)
        share = (out * 300).softmax(-1)
        self.penalties = {"entropy": (share * share.log()).sum()}
        return out


@pytest.mark.parametrize("told", [False, True])
def test_what_a_forward_leaves_on_the_model_is_followed_into_the_forward(told: bool) -> None:
    torch.manual_seed(0)
    model, data = Penalised(), batch()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def loss(out: Tensor, b: Any) -> Tensor:
        return mse(out, b) + model.penalties["entropy"]

    with gnnstab.Monitor(model, optimizer=optimizer, loss=loss if told else None, on_finding="ignore") as monitor:
        for _ in range(3):
            optimizer.zero_grad()
            value = loss(model(data), data)
            value.backward()
            optimizer.step()
            monitor.loss(value)
    shown = monitor.diagnose()
    assert "share.log()" in operation(monitor)["code"]
    assert [(cause.cause, cause.how) for cause in shown.root_causes()] == [("undefined-operation", "observed")]


def test_with_the_loss_one_nan_is_one_warning() -> None:
    torch.manual_seed(0)
    model, told = Net(), []
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with gnnstab.Monitor(model, optimizer=optimizer, loss=log_loss, on_finding=told.append) as monitor:
        for data in (batch(), batch(), batch()):
            optimizer.zero_grad()
            loss = log_loss(model(data), data)
            loss.backward()
            optimizer.step()
            monitor.loss(loss)
    assert [finding.step for finding in told] == [0]
    assert math.isinf(told[0].value), "log(0) is −inf, not NaN"


def test_of_accumulated_batches_the_bad_one_is_found() -> None:
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    batches = [batch(), batch(y=spoilt(batch().y, 8)), batch(), batch()]
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore", loss=mse) as monitor:
        for data in batches:
            mse(model(data), data).backward()
        optimizer.step()
    assert operation(monitor)["tensor"]["name"] == "y"
    assert operation(monitor)["tensor"]["rows"] == [8]


def test_skipped_steps_of_a_scaler_are_normal_and_a_loss_that_is_not_finite_is_none() -> None:
    torch.manual_seed(0)
    model, data = Net(), batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)

    def run(loss: Any, steps: int) -> gnnstab.Monitor:
        with gnnstab.Monitor(model, optimizer=optimizer, scaler=scaler, on_finding="ignore") as monitor:
            for _ in range(steps):
                optimizer.zero_grad()
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    value = loss(model(data).float(), data)
                monitor.loss(value)
                scaler.scale(value).backward()
                scaler.step(optimizer)
                scaler.update()
        return monitor

    assert not run(mse, 3).trace.events("non-finite")
    assert operation(run(log_loss, 3))["name"] == "log"


def test_targets_that_the_model_never_sees_are_named_as_the_code_names_them() -> None:
    torch.manual_seed(0)
    model, data = Net(), batch()
    labels = spoilt(data.y, 4, 6)
    del data.y
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore") as monitor:
        for _ in range(2):
            optimizer.zero_grad()
            F.mse_loss(model(data), labels).backward()
            optimizer.step()
    found = operation(monitor)
    assert (found["tensor"]["name"], found["tensor"]["rows"]) == ("labels", [4, 6])
    assert monitor.diagnose().root_causes()[0].cause == "non-finite-data"


def test_a_loss_of_the_graph_alone_says_what_it_is_made_of() -> None:
    torch.manual_seed(0)
    model, data = Net(), batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore") as monitor:
        value = log_loss(model(data), data)
        value.backward()
        monitor.loss(value)
        optimizer.step()
    (finding,) = monitor.diagnose(select=["GS502"]).findings
    assert "the model's output is finite, largest" in finding.message
    assert "neg ← log ← softmax ← mul" in finding.message or "mean ← log ← softmax" in finding.message
    assert "Monitor(loss=fn)" in finding.message
    assert finding.cause == ""


def chosen_only(reduction: str) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda kept, labels: F.cross_entropy(kept, labels, reduction=reduction) + 0.1 * kept.square().sum()


def spread(correction: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Two terms, so that the chain of first operands does not lead to the spread."""
    return lambda kept, labels: F.cross_entropy(kept, labels) + 0.1 * kept[:, 0].std(correction=correction)


@pytest.mark.parametrize("told_late", [False, True])
@pytest.mark.parametrize(
    ("loss", "fewest", "says"),
    [
        (chosen_only("mean"), 0, "nll_loss takes the mean of a tensor without entries"),
        (chosen_only("sum"), 0, ""),
        (spread(1), 1, "std divides the spread of a single entry"),
        (spread(1), 2, ""),
    ],
    ids=["mean over nothing", "sum over nothing", "spread of one", "spread of two"],
)
@pytest.mark.filterwarnings("ignore:std")
def test_a_reduction_of_too_few_is_read_from_the_graph(
    loss: Callable[[Tensor, Tensor], Tensor], fewest: int, says: str, told_late: bool
) -> None:
    """Also when the weights have moved before the loss is told, so that nothing can be run again."""
    torch.manual_seed(0)
    model, data = Net(), batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore") as monitor:
        for chosen in (torch.arange(6), torch.arange(fewest), torch.arange(6)):
            optimizer.zero_grad()
            value = loss(model(data)[chosen], data.y[chosen].argmax(-1))
            value.backward()
            if not told_late:
                monitor.loss(value)
            optimizer.step()
            if told_late:
                monitor.loss(value)
    diagnosis = monitor.diagnose(select=["GS502"])
    assert [f.cause for f in diagnosis.findings] == (["undefined-operation"] if says else [])
    assert all(says in finding.message for finding in diagnosis.findings)
    first = first_non_finite(diagnosis)
    assert (None if first is None else first.stage) == ("loss" if says else None)


def test_compiled_models_are_not_watched_in_place() -> None:
    torch.manual_seed(0)
    model, data = torch.compile(Net(), backend="eager"), batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore") as monitor:
        for _ in range(2):
            optimizer.zero_grad()
            log_loss(model(data), data).backward()
            optimizer.step()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    (finding,) = monitor.diagnose(select=["GS502"]).findings
    assert finding.cause == ""
    assert "compiled" in finding.message


def test_an_exception_in_the_watched_step_leaves_no_mode_behind() -> None:
    torch.manual_seed(0)
    model, data = (
        Net(end=lambda out, b: (_ for _ in ()).throw(ValueError("stop")) if hasattr(b, "stop") else out),
        batch(),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore"):
        log_loss(model(data), data).backward()
        optimizer.step()
        data.stop = torch.ones(1)
        with pytest.raises(ValueError, match="stop"):
            model(data)
        assert torch._C._len_torch_dispatch_stack() == 1
    assert torch._C._len_torch_dispatch_stack() == 0


def test_an_exception_with_a_nan_behind_it_names_the_operation() -> None:
    torch.manual_seed(0)
    model, data = (
        Net(end=lambda out, b: torch.distributions.Normal(out * 0 / (b.y * 0), 1.0, validate_args=True)),
        batch(),
    )
    with pytest.raises(ValueError, match="invalid values"), gnnstab.Monitor(model, on_finding="ignore") as monitor:
        model(data)
    (finding,) = monitor.diagnose(select=["GS502"]).findings
    assert finding.cause == "undefined-operation"
    assert "0 / 0 = NaN" in finding.message
    model = Net(end=lambda out, b: out.view(-1, 5))
    with pytest.raises(RuntimeError, match="shape"), gnnstab.Monitor(model, on_finding="ignore") as monitor:
        model(data)
    assert not monitor.trace.events("non-finite")


def test_a_loss_that_cannot_be_called_is_said_and_the_next_step_is_watched() -> None:
    torch.manual_seed(0)
    model, data = Net(), batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)

    def other(out: Tensor, b: Any) -> Tensor:
        return b.no_such_thing.sum()

    monitor = gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore", loss=other)

    def train() -> None:
        with monitor:
            for _ in range(2):
                optimizer.zero_grad()
                log_loss(model(data), data).backward()
                optimizer.step()

    with pytest.warns(GnnstabWarning, match="failed when it was called on a copy"):
        train()
    assert "AttributeError" in str(monitor.trace.events()[0].detail["note"])
    assert operation(monitor)["how"].startswith("loss repeated")


def test_a_loss_that_is_a_number_is_refused() -> None:
    with pytest.raises(UsageError, match=r"monitor\.loss"):
        gnnstab.Monitor(Net(), loss=0.3)  # type: ignore[arg-type]


class Sized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Net() for _ in range(4))

    def forward(self, data: Data) -> Tensor:
        return sum(layer(data) for layer in self.layers) / 4  # type: ignore[return-value]


def test_repeating_a_step_takes_no_longer_than_twenty_steps() -> None:
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    data = batch(
        x=torch.randn(2000, 4, generator=g),
        edge_index=torch.randint(0, 2000, (2, 20000), generator=g),
        edge_attr=torch.randn(20000, 3, generator=g),
    )
    model = Sized()

    def loss(out: Tensor, b: Any) -> Tensor:
        return (out * 0).square().sum().sqrt()

    def best(body: Any, of: int) -> float:
        times = []
        for _ in range(of):
            begun = time.perf_counter()
            body()
            times.append(time.perf_counter() - begun)
        return min(times)

    step = best(lambda: loss(model(data), data).backward(), 5)
    again = best(lambda: repeat(model, ForwardInputs((data,)), objective_of(loss)), 3)
    assert again <= 20 * step
