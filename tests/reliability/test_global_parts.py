"""What of the user's is global to the process, hooks, modes, threads, context, sees the run alone: no copy and no step of one."""

from __future__ import annotations

import contextlib
import contextvars
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.functional import mse_loss
from torch.nn.modules import module as modules
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.overrides import TorchFunctionMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from torch_geometric.nn import Sequential

import gnnstab
from gnnstab.errors import UsageError
from gnnstab.other_threads import may_draw
from gnnstab.own_draws import OwnDraws
from gnnstab.probe.replaying.replica import ForwardInputs, replica, run_replica
from gnnstab.randomness import same_random_state
from side_by_side import Net, Run, codes, graph, unnoticed

X, EDGES = graph()
Y = torch.ones(len(X), 1)
COUNT = [0]
CONTEXT: contextvars.ContextVar[int] = contextvars.ContextVar("CONTEXT", default=0)


def count(*_: Any) -> None:
    COUNT[0] += 1


class Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        COUNT[0] += 1
        return func(*args, **(kwargs or {}))


class Functions(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        COUNT[0] += 1
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def flops() -> Iterator[None]:
    with FlopCounterMode(display=False) as counter:
        yield
    COUNT[0] = counter.get_total_flops()


@contextlib.contextmanager
def hooked(register: Callable[..., Any]) -> Iterator[None]:
    handle = register(count)
    yield
    handle.remove()


AROUND: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "forward hook": lambda: hooked(modules.register_module_forward_hook),
    "forward pre hook": lambda: hooked(modules.register_module_forward_pre_hook),
    "backward hook": lambda: hooked(modules.register_module_full_backward_hook),
    "optimizer pre hook": lambda: hooked(register_optimizer_step_pre_hook),
    "optimizer post hook": lambda: hooked(register_optimizer_step_post_hook),
    "flop counter": flops,
    "dispatch mode": Operations,
    "function mode": Functions,
}


def steps(run: Run, model: Net, batches: Callable[[], Tensor] = lambda: X, number: int = 12) -> None:
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    with run.watching(model, optimizer=optimizer, loss=lambda output: mse_loss(output, Y)):
        before = COUNT[0]
        for _ in range(number):
            optimizer.zero_grad()
            loss = mse_loss(model(batches(), EDGES), Y)
            loss.backward()
            optimizer.step()
            for group in optimizer.param_groups:  # A schedule that goes by what a hook has counted.
                group["lr"] = 1e-2 / (1 + 0.01 * (COUNT[0] - before))
        run.keep(torch.tensor(COUNT[0] - before))
    run.keep(*model.parameters())


@pytest.mark.parametrize("around", AROUND)
def test_what_counts_counts_the_run_alone(around: str) -> None:
    def loop(run: Run) -> None:
        COUNT[0] = 0
        with AROUND[around]():
            steps(run, Net())

    run = unnoticed(loop)
    assert run.monitor is not None
    assert codes(run.monitor) == []


@pytest.mark.parametrize("around", ["forward hook", "forward pre hook", "flop counter"])
def test_public_functions_are_not_counted(around: str) -> None:
    COUNT[0] = 0
    with AROUND[around]():
        gnnstab.diagnose(Net(), batch=(X, EDGES), loss=lambda output, batch: mse_loss(output, Y))
    assert COUNT[0] == 0


class Doubling(TorchFunctionMode):
    """Changes what the model computes, so that a copy without it computes something else."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        return out * 2 if func is torch.nn.functional.linear else out


def doubled(module: Any, args: Any, output: Any) -> Any:
    return output * 2


@pytest.mark.parametrize(
    ("around", "name"), [(Doubling, "Doubling"), (lambda: contextlib.ExitStack(), "doubled")], ids=["mode", "hook"]
)
def test_nothing_is_run_on_copies_without_what_computes(
    around: Callable[[], AbstractContextManager[Any]], name: str
) -> None:
    handle = modules.register_module_forward_hook(doubled) if name == "doubled" else None
    with around(), pytest.raises(UsageError, match=name), same_random_state():
        pass
    if handle is not None:
        handle.remove()


class Contextual(Net):
    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        CONTEXT.set(CONTEXT.get() + 1)
        return super().forward(x * (1 + 0.1 * CONTEXT.get()), edge_index)


def test_a_counter_in_a_context_variable() -> None:
    def loop(run: Run) -> None:
        CONTEXT.set(0)
        steps(run, Contextual())
        run.keep(torch.tensor(CONTEXT.get()))

    unnoticed(loop)


DRAWS: dict[str, Callable[[], Tensor]] = {
    "torch": lambda: torch.randn(X.shape),
    "numpy": lambda: torch.from_numpy(np.random.standard_normal(X.shape)).float(),
    "random": lambda: X * random.random(),
}


@pytest.mark.parametrize("draw", DRAWS)
def test_a_thread_that_draws_the_batches(draw: str) -> None:
    """Only that thread draws, so that two runs alone are the same; it waits for the training and the training for it."""

    def loop(run: Run) -> None:
        np.random.seed(0)
        random.seed(0)
        ready: queue.Queue[Tensor] = queue.Queue(4)
        model = Net(dropout=0.0)

        def feed() -> None:
            for _ in range(40):
                for _ in range(10):
                    time.sleep(0.0002)
                    batch = DRAWS[draw]()
                ready.put(batch)

        thread = threading.Thread(target=feed, daemon=True)
        thread.start()
        steps(run, model, ready.get, 40)
        thread.join()

    run = unnoticed(loop)
    assert run.monitor is not None
    assert "GS902" not in codes(run.monitor)
    with run.monitor.trace as trace:
        assert "places" in trace.meta and trace.notes == ()  # The copies draw from generators of their own.


class Noisy(Net):
    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return super().forward(x * (1 + 0.1 * random.random()), edge_index)


class InSequence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Sequential("x, e", [(Net(), "x, e -> x")])

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.net(x, edge_index)


@pytest.mark.parametrize(("kind", "reason"), [(Noisy, "forward draws from"), (InSequence, "Sequential draws its name")])
def test_what_would_draw_beside_a_thread_is_left_out_and_said(kind: type[nn.Module], reason: str) -> None:
    def loop(run: Run) -> None:
        random.seed(0)
        model, stop = kind(), threading.Event()
        worker = threading.Thread(target=lambda: stop.wait(), daemon=True)
        worker.start()
        steps(run, model, number=4)
        stop.set()
        worker.join()
        run.keep(torch.tensor(random.random()))

    run = unnoticed(loop)
    assert run.monitor is not None
    notes = run.monitor.diagnose().target.notes
    assert notes and all("some looks on copies were left out" in note for note in notes)
    assert any(reason in note for note in notes)


class Prefetching(threading.Thread):
    """As packages have them: the iterator comes from the user."""

    def __init__(self, items: Iterator[int], stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.items, self.stop = items, stop


def test_threads_of_packages_that_were_given_an_iterator() -> None:
    Prefetching.__module__ = "logging"  # Any module that is not the user's.
    stop = threading.Event()
    thread = Prefetching(iter([1]), stop)
    thread.run = stop.wait  # type: ignore[method-assign]
    thread.start()
    assert may_draw() == thread.name
    stop.set()
    thread.join()
    assert may_draw() == ""


OPERATIONS: dict[str, Callable[[], Tensor]] = {
    "dropout": lambda: torch.nn.functional.dropout(X, 0.5),
    "rand": lambda: torch.rand(3),
    "randn_like": lambda: torch.randn_like(X),
    "randperm": lambda: torch.randperm(5),
    "randint": lambda: torch.randint(0, 9, (4,)),
    "normal": lambda: torch.normal(X, 1.0),
    "multinomial": lambda: torch.multinomial(X.abs(), 2),
    "given": lambda: torch.rand(3, generator=torch.default_generator),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_draw_the_same_elsewhere(operation: str) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with OwnDraws("worker"):
        drawn = OPERATIONS[operation]()
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(drawn, OPERATIONS[operation]())


def test_an_operation_that_takes_no_generator_is_refused() -> None:
    before = torch.get_rng_state()
    with OwnDraws("worker"), pytest.raises(UsageError, match="thread worker"):
        torch.ops.aten.native_dropout(X, 0.5, True)
    with OwnDraws("worker"):
        torch.ops.aten.native_dropout(X, 0.5, False)
    assert torch.equal(torch.get_rng_state(), before)


def test_threads_that_draw_nothing_change_nothing() -> None:
    """One that only waits in the standard library, and one that waits for the training to end."""
    event, done = threading.Event(), []
    idle = threading.Thread(target=event.wait, daemon=True)
    idle.start()

    def train() -> None:
        for _ in range(1000):
            if not may_draw():  # By now the main thread waits for this one.
                break
            time.sleep(0.01)
        with same_random_state():
            done.append(True)

    worker = threading.Thread(target=train)
    worker.start()
    worker.join()
    event.set()
    idle.join()
    assert done == [True]


def test_another_bit_generator_of_numpy() -> None:
    kept = np.random.get_bit_generator()  # type: ignore[attr-defined]

    class Draws(Net):
        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return super().forward(x * (1 + 0.1 * np.random.rand()), edge_index)

    def loop(run: Run) -> None:
        np.random.set_bit_generator(np.random.PCG64(3))  # type: ignore[attr-defined]
        steps(run, Draws())
        run.keep(torch.tensor(np.random.rand()))

    try:
        unnoticed(loop)
    finally:
        np.random.set_bit_generator(kept)  # type: ignore[attr-defined]


class Synchronised(Net):
    """Takes the mean over all processes from its input."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        mean = x.mean(0)
        dist.all_reduce(mean)
        return super().forward(x - mean / dist.get_world_size(), edge_index)


@pytest.fixture
def two_processes() -> Iterator[None]:
    """The second is not there, and nobody waits for it."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    dist.destroy_process_group()


def test_a_copy_is_refused_collectives(two_processes: None) -> None:
    model = Synchronised()
    model(X, EDGES)
    for call in (lambda: run_replica(replica(model), ForwardInputs((X, EDGES))), lambda: gnnstab.attention(model, (X, EDGES))):  # fmt: skip
        with pytest.raises(UsageError, match="collective"):
            call()
