"""What a loss, a forward or a hook counts outside of itself is counted by the run alone: a trial on a copy puts it back."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gnnstab
from counting import WAYS, Count, in_what_nobody_puts_back
from gnnstab.probe.replaying._named import names_of
from gnnstab.probe.replaying.outside import Outside
from gnnstab.probe.replaying.reach import stateful
from gnnstab.surroundings import surroundings
from gnnstab.trials import put_back_after, trial
from side_by_side import Net, Run, graph, unnoticed

X, EDGES = graph()
Y = torch.randn(len(X), 1, generator=torch.Generator().manual_seed(5))


@pytest.fixture(autouse=True)
def _settings_as_before() -> Iterator[None]:
    put_back = surroundings()
    yield
    put_back()


def trained(run: Run, model: Net, loss: Any, watched: Any) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with run.watching(model, optimizer=optimizer, loss=watched):
        for _ in range(6):
            optimizer.zero_grad()
            value = loss(model(X, EDGES))
            value.backward()
            run.keep(value, *(p.grad for p in model.parameters()))
            optimizer.step()
            if run.monitor is not None:
                run.monitor.loss(value)


@pytest.mark.parametrize("way", WAYS)
def test_a_loss_that_counts(way: Callable[[], Count]) -> None:
    def loop(run: Run) -> None:
        torch.manual_seed(3)
        count = way()

        def loss(output: Tensor) -> Tensor:
            return (output - Y).square().mean() * (1 + 0.1 * count())

        trained(run, Net(), loss, loss)

    unnoticed(loop)


class Counting(Net):
    """Its forward counts and computes with the count, and so does its backward; a loss may add what it has left."""

    def __init__(self, count: Count, left: list[Tensor]) -> None:
        super().__init__()

        class Inner(nn.Module):  # What the methods of a class reach a copy shares.
            def forward(self, x: Tensor) -> Tensor:
                out: Tensor = CountedBackward.apply(x * (1 + 0.01 * count()))
                left.append(out.detach().square().mean())
                return out

        self.inner = Inner()

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.inner(super().forward(x, edge_index))
        return out


class CountedBackward(torch.autograd.Function):
    calls = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        CountedBackward.calls += 1
        return gradient * (1 + 0.01 * CountedBackward.calls)


def loss_with(left: list[Tensor]) -> Callable[..., Tensor]:
    def loss(output: Tensor, batch: Any = None) -> Tensor:
        if len(left) != 1:
            raise ValueError("the loss sees what its own forward has left, and nothing else")
        return (output - Y).square().mean() + 0.1 * left.pop()

    return loss


@pytest.mark.parametrize("way", WAYS)
def test_a_forward_and_a_backward_that_count(way: Callable[[], Count]) -> None:
    def loop(run: Run) -> None:
        torch.manual_seed(3)
        CountedBackward.calls, left = 0, list[Tensor]()
        count = way()
        loss = loss_with(left)
        trained(run, Counting(count, left), loss, loss)
        run.keep(torch.tensor([count(), CountedBackward.calls]))

    warned = unnoticed(loop).warned
    # A forward that runs on no copy leaves nothing for the loss, which is asked about the run's own output: that is said.
    assert len(warned) == (way is in_what_nobody_puts_back)
    assert all("the loss sees what its own forward has left, and nothing else" in words for words in warned)


class Slowing(torch.optim.Optimizer):
    """Counts its steps in its class."""

    steps = 0

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters(), {"lr": 1e-2})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        Slowing.steps += 1
        for parameter in (p for group in self.param_groups for p in group["params"]):
            parameter.add_(parameter.grad, alpha=-self.param_groups[0]["lr"] / Slowing.steps)


def test_an_optimizer_that_counts() -> None:
    def loop(run: Run) -> None:
        Slowing.steps = 0
        model = Net()
        optimizer = Slowing(model)
        with run.watching(model, optimizer=optimizer, loss=lambda output, batch: (output - Y).square().mean()):
            for _ in range(6):
                optimizer.zero_grad()
                (model(X, EDGES) - Y).square().mean().backward()
                optimizer.step()
        run.keep(*model.parameters(), torch.tensor(Slowing.steps))

    unnoticed(loop)


CALLS: dict[str, Callable[..., Any]] = {
    "diagnose": lambda model, loss: gnnstab.diagnose(model, batch=(X, EDGES), loss=loss),
    "attention": lambda model, loss: gnnstab.attention(model, (X, EDGES)),
    "verify": lambda model, loss: gnnstab.verify(model, "dropout", batch=(X, EDGES), loss=loss, seeds=1, steps=2),
}


@pytest.mark.parametrize("name", CALLS)
def test_public_functions_count_nothing(name: str) -> None:
    left: list[Tensor] = []
    noted: list[int] = []
    numbers = {"hooks": 0}

    def note(module: nn.Module, args: Any, output: Any) -> None:
        noted.append(len(noted))
        numbers["hooks"] += 1

    def told() -> tuple[float, ...]:
        return (*held, CountedBackward.calls, len(left), len(noted), *numbers.values())

    held = [0]

    def count() -> float:
        held[0] += 1
        return held[0]

    model = Counting(count, left)
    model.first.register_forward_hook(note)
    model.register_forward_hook(lambda module, args, output: noted.append(0))
    loss = loss_with(left)
    loss(model(X, EDGES)).backward()
    before = told()
    CALLS[name](model, loss)
    assert told() == before


def test_tensors_that_are_written_only_now_and_then() -> None:
    memory, calls = torch.zeros(3), [0]

    class Remembering(Net):
        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            calls[0] += 1
            if calls[0] % 4 == 0:
                memory.add_(1)
            return super().forward(x, edge_index) + memory.sum()

    def loop(run: Run) -> None:
        memory.zero_()
        calls[0] = 0
        torch.manual_seed(3)
        trained(run, Remembering(), lambda output: output.square().mean(), lambda output, batch: output.square().mean())
        run.keep(memory)

    unnoticed(loop)
    before, version = memory.clone(), memory._version
    calls[0] = 1
    gnnstab.diagnose(Remembering(), batch=(X, EDGES))
    assert memory.equal(before) and memory._version == version and calls[0] == 1


def test_what_nobody_assigns_and_what_did_not_change_stays_the_same_object() -> None:
    held: dict[str, list[int]] = {"rows": [1, 2]}
    here = types.SimpleNamespace()

    def reads() -> int:
        return len(held["rows"])

    outside = Outside([reads, here])
    rows = held["rows"]
    outside.put_back()
    assert held["rows"] is rows and rows == [1, 2]
    rows.append(3)
    held["more"] = []
    outside.put_back()
    assert held == {"rows": [1, 2]} and held["rows"] is rows


def test_a_key_is_there_at_any_moment() -> None:
    """A signal handler may read the dict while a count in it is put back."""
    counts, there = {"calls": 0}, []
    back = Outside([eval("lambda: counts", {"counts": counts, "__name__": "own"})])
    counts["calls"] = 5
    sys.setprofile(lambda *_: there.append("calls" in counts))
    back.put_back()
    sys.setprofile(None)
    assert counts == {"calls": 0}
    assert all(there)


def refuses() -> None:
    raise OSError("sealed")


def test_what_cannot_be_put_back_is_told_and_the_rest_is_put_back() -> None:
    first, last = [1], [2]

    def tried() -> None:
        with trial():
            for known in (first, last):
                put_back_after(known, list, lambda _: partial(known.__setitem__, slice(None), list(known)))  # noqa: B023
                known.append(3)
                put_back_after(object(), list, lambda _: refuses)

    with pytest.raises(OSError, match="sealed"):
        tried()
    assert (first, last) == ([1], [2])


def test_what_is_reached_is_found_once_and_its_state_is_taken_for_every_trial() -> None:
    known, found = [1], list[int]()

    def called() -> None:
        with trial():
            put_back_after(
                known, lambda: found.append(1), lambda _: partial(known.__setitem__, slice(None), list(known))
            )
            known.append(2)

    with trial():
        called()
        assert known == [1]
        known.append(3)
        called()
        assert known == [1, 3]
    assert (known, found) == ([1], [1])


def test_after_an_exception_that_one_is_told() -> None:
    def tried() -> None:
        with trial():
            put_back_after(object(), list, lambda _: refuses)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        tried()


STEPS: dict[str, Callable[..., Any]] = {
    "a schedule": lambda optimizer, schedule: schedule.step(),
    "gradients": lambda optimizer, schedule: optimizer.zero_grad(),
    "a rate": lambda optimizer, schedule: optimizer.param_groups[0].update(lr=optimizer.param_groups[0]["lr"] * 0.9),
}


@pytest.mark.filterwarnings("ignore:Detected call of")
@pytest.mark.parametrize("where", ["loss", "forward"])
@pytest.mark.parametrize("what", STEPS)
def test_steps_that_a_loss_or_a_forward_takes(what: str, where: str) -> None:
    held: list[Any] = []

    def taken() -> None:
        if held:
            STEPS[what](*held)

    class Stepping(Net):
        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            taken()
            return super().forward(x, edge_index)

    def loop(run: Run) -> None:
        torch.manual_seed(3)
        held.clear()
        model = Stepping() if where == "forward" else Net()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        held.extend((optimizer, schedule))

        def loss(output: Tensor, batch: Any = None) -> Tensor:
            if where == "loss":
                taken()
            return (output - Y).square().mean()

        with run.watching(model, optimizer=optimizer, loss=loss):
            for _ in range(6):
                value = loss(model(X, EDGES))
                value.backward()
                optimizer.step()
        run.keep(*model.parameters(), torch.tensor([schedule.last_epoch, optimizer.param_groups[0]["lr"]]))

    unnoticed(loop)


@functools.cache
def drawn_once(width: int) -> Tensor:
    return torch.randn(width)


class Settings:
    @functools.cached_property
    def drawn(self) -> Tensor:
        return torch.randn(1)


@pytest.mark.parametrize("name", CALLS)
def test_public_functions_fill_no_cache(name: str) -> None:
    settings = Settings()

    class Projected(Net):
        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return super().forward(x * drawn_once(1), edge_index) * settings.drawn

    drawn_once.cache_clear()
    CALLS[name](Projected(), lambda output, batch: output.square().mean())
    assert drawn_once.cache_info().currsize == 0 and not vars(settings)
    kept = drawn_once(1), settings.drawn
    CALLS[name](Projected(), lambda output, batch: output.square().mean())
    assert drawn_once(1) is kept[0] and settings.drawn is kept[1]


def test_the_code_of_a_large_library_that_a_loss_reaches_is_not_gone_through() -> None:
    frames = pytest.importorskip("pandas")
    kept = frames.DataFrame({"loss": [0.0]})

    def loss(output: Tensor, batch: Any = None) -> Tensor:
        kept.loc[len(kept)] = 1.0
        return output.square().mean()

    assert len(stateful(loss).code) < 5000
    read = names_of.cache_info().misses
    stateful(loss)
    assert names_of.cache_info().misses == read


def test_memory_that_was_given_back_is_left_alone() -> None:
    """As FSDP does between two forwards; to read it would end the process."""
    gone, counted = torch.ones(4), [0]

    def forward() -> Tensor:
        counted[0] += 1
        return gone

    gone.untyped_storage().resize_(0)
    outside = Outside([forward])
    forward()
    outside.put_back()
    assert counted == [0]
    assert not gone.untyped_storage().nbytes()
