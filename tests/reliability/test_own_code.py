"""What the user's own code asks of the objects that gnnstab puts in the place of theirs."""

from __future__ import annotations

import inspect
import io
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.compiled_autograd import _enable
from torch.nn.functional import mse_loss
from torch_geometric.nn import TransformerConv

import gnnstab
from side_by_side import WIDTH, Net, Run, codes, graph, hooks_of, unnoticed

X, EDGES = graph()
Y = torch.ones(len(X), 1)


class ByArgument(torch.optim.SGD):
    """Calls its closure with an argument, reads and sets attributes of it."""

    def step(self, closure: Any) -> Any:  # type: ignore[override]
        self.zero_grad()
        loss = closure(scale=2.0)
        closure.seen = closure.calls
        super().step()
        return loss


def closure_with_an_argument(run: Run) -> None:
    model = Net()
    optimizer = ByArgument(model.parameters(), 1e-2)

    def closure(scale: float = 1.0) -> Tensor:
        closure.calls += 1  # type: ignore[attr-defined]
        loss = scale * mse_loss(model(X, EDGES), Y)
        loss.backward()
        return loss

    closure.calls = 0  # type: ignore[attr-defined]
    with run.watching(model, optimizer=optimizer):
        for step in range(1, 4):
            run.keep(optimizer.step(closure))
            assert vars(closure) == {"calls": step, "seen": step}


def scaler_whose_update_is_wrapped(run: Run) -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    updated = scaler.update

    def at_most(*new_scale: float) -> None:
        updated(*new_scale)
        if scaler.get_scale() > 2.0**11:
            updated(2.0**11)

    scaler.update = at_most  # type: ignore[method-assign]
    with run.watching(model, optimizer=optimizer, scaler=scaler):
        for _ in range(6):
            optimizer.zero_grad()
            scaler.scale(mse_loss(model(X, EDGES), Y)).backward()
            scaler.step(optimizer)
            scaler.update()
            run.keep(torch.tensor(scaler.get_scale()))
    assert vars(scaler)["update"] is at_most


class Dense(nn.Module):
    """Attention by hand; its ``forward`` is run inside a context while a monitor watches."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return torch.softmax(self.query(x) @ x.t(), -1) @ x


class Asking(Net):
    """Computes something else where a method does not answer as a method does."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = Dense()

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        methods = {"forward": (self.dense, self.dense.forward), "message": (self.first, self.first.message)}
        for name, (owner, method) in methods.items():
            function = getattr(type(owner), name)
            answers = (method.__name__, method.__self__, method.__func__, hasattr(method, "__wrapped__"))
            if answers != (name, owner, function, False) or "self" in inspect.signature(method).parameters:
                x = 2 * x
            if list(inspect.signature(method).parameters) != list(inspect.signature(function).parameters)[1:]:
                x = 2 * x
        return super().forward(self.dense(x), edge_index)


def model_that_asks_its_methods(run: Run) -> None:
    model = Asking()
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    with run.watching(model, optimizer=optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            loss = mse_loss(model(X, EDGES), Y)
            loss.backward()
            optimizer.step()
            run.keep(loss)


def model_that_is_traced(run: Run) -> None:
    model = Asking()
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    with run.watching(model, optimizer=optimizer):
        mse_loss(model(X, EDGES), Y).backward()
        optimizer.step()
        model.eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyG's own, of sizes that become constants.
            traced = torch.jit.trace(model, (X, EDGES))
        run.keep(traced(X, EDGES), torch.tensor(len(list(traced.inlined_graph.nodes()))))


def model_that_is_exported(run: Run) -> None:
    """The program is kept and deployed: it holds what the model computes and nothing else."""
    model = Asking()
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    with run.watching(model, optimizer=optimizer):
        mse_loss(model(X, EDGES), Y).backward()
        optimizer.step()
        program = torch.export.export(model.eval(), (X, EDGES))
        run.keep(program.module()(X, EDGES), torch.tensor([len(program.graph.nodes), len(program.constants)]))


class OneLayer(nn.Module):
    """Whose backward is compiled in half the time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = TransformerConv(WIDTH, 1)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.conv(x, edge_index)
        return out


def compiled_backward(run: Run) -> None:
    model = OneLayer()
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    with run.watching(model, optimizer=optimizer):
        for _ in range(2):
            optimizer.zero_grad()
            loss = mse_loss(model(X, EDGES), Y)
            with _enable(torch.compile(backend="eager", fullgraph=True)):
                loss.backward()
            optimizer.step()
            run.keep(loss)


class Pair(tuple[Tensor, Tensor]):
    """Takes two arguments where a tuple takes one."""

    def __new__(cls, x: Tensor, edge_index: Tensor) -> Pair:
        return super().__new__(cls, (x, edge_index))


class OfPairs(Net):
    """Takes a batch of a class of its own."""

    def forward(self, batch: Pair) -> Tensor:  # type: ignore[override]
        return super().forward(*batch)


def batches_of_an_own_class(run: Run) -> None:
    model = OfPairs()
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    with run.watching(model, optimizer=optimizer):
        for _ in range(2):
            mse_loss(model(Pair(X, EDGES)), Y).backward()
            optimizer.step()
            run.keep(*model.parameters())


def begun_under_the_meta_device(run: Run) -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    with ExitStack() as stack:
        with torch.device("meta"):
            stack.enter_context(run.watching(model, optimizer=optimizer))
        mse_loss(model(X, EDGES), Y).backward()
        optimizer.step()
        run.keep(*model.parameters())


def inputs_that_are_saved(run: Run) -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    x = X.clone().requires_grad_()
    with run.watching(model, optimizer=optimizer):
        mse_loss(model(x, EDGES), Y).backward()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            torch.save(x, io.BytesIO())
        optimizer.step()
        run.keep(x.grad, *model.parameters())


@pytest.mark.parametrize(
    "loop",
    [
        closure_with_an_argument,
        scaler_whose_update_is_wrapped,
        model_that_asks_its_methods,
        model_that_is_traced,
        model_that_is_exported,
        compiled_backward,
        inputs_that_are_saved,
        batches_of_an_own_class,
        begun_under_the_meta_device,
    ],
)
def test_what_stands_in_the_place_of_the_users_answers_as_it_does(loop: Callable[[Run], None]) -> None:
    assert unnoticed(loop).warned == []


class Deadline(Exception):
    """Raised by the user's handler of a signal."""


def deadline(number: int, frame: object) -> None:
    raise Deadline


def thrown(kind: type[BaseException], *args: object) -> None:
    raise kind


def stop(*args: object) -> None:
    sys.exit("stopped")


class Signalled(Net):
    """Does something to the process when it runs on a copy, while code of gnnstab waits for it."""

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        super().__init__()
        self.meanwhile, self.own = meanwhile, id(self)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        if id(self) != self.own:
            self.meanwhile()
        return super().forward(x, edge_index)


def signalled() -> None:
    signal.raise_signal(signal.SIGUSR1)


def train(model: nn.Module, **options: Any) -> gnnstab.Monitor:
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    with gnnstab.Monitor(model, optimizer=optimizer, schedule=1, **options) as monitor:
        for _ in range(3):
            optimizer.zero_grad()
            loss = mse_loss(model(X, EDGES), Y)
            loss.backward()
            monitor.loss(loss)
            optimizer.step()
    return monitor


@pytest.fixture
def handled(request: pytest.FixtureRequest) -> Iterator[None]:
    before = signal.signal(signal.SIGUSR1, request.param)
    yield
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize(
    ("handled", "error"),
    [
        (deadline, Deadline),
        (stop, SystemExit),
        (partial(thrown, KeyboardInterrupt), KeyboardInterrupt),
        (signal.default_int_handler, KeyboardInterrupt),
    ],
    indirect=["handled"],
)
@pytest.mark.parametrize(
    "part", ["", "probe.recorder:Recorder._end", "probe.attaching.forward_tracker:ForwardTracker._before"]
)
def test_what_a_signal_handler_raises_while_gnnstab_works_reaches_the_loop(
    handled: None, error: type[BaseException], part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if part:
        module, _, name = part.partition(":")
        monkeypatch.setattr(f"gnnstab.{module}.{name}", lambda *args: signalled())
    with pytest.raises(error) as caught:
        train(Net() if part else Signalled(signalled))
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_model_that_exits_on_a_copy_does_not_end_the_run(error: type[BaseException]) -> None:
    """Nor is it a failure of the tool."""
    monitor = train(Signalled(partial(thrown, error)))
    assert "GS902" not in codes(monitor)
    with monitor.trace as trace:
        assert len(trace.steps()) == 3
        assert any(f"code of yours raised {error.__name__}" in note for note in trace.notes)


def test_a_closed_standard_error_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(warnings, "showwarning", lambda *args, **kwargs: closed.write(str(args)))
    with monkeypatch.context() as broken:
        broken.setattr("gnnstab.probe.attaching.forward_tracker.ForwardTracker._before", lambda *args: 1 / 0)
        monitor = train(Net())
    assert "GS902" in codes(monitor)


def test_an_interrupt_while_the_run_ends_leaves_neither_hooks_nor_an_open_trace(tmp_path: Path) -> None:
    """The last look at the places runs the model on a copy; an interrupt there comes out of ``with``."""
    path = tmp_path / "run.gnnstab"
    model = Signalled(lambda: None)
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def loop() -> None:
        with gnnstab.Monitor(model, optimizer=optimizer, trace=path):
            for _ in range(4):
                optimizer.zero_grad()
                mse_loss(model(X, EDGES), Y).backward()
                optimizer.step()
            model.meanwhile = partial(signal.raise_signal, signal.SIGINT)

    try:
        with pytest.raises(KeyboardInterrupt):
            loop()
    finally:
        signal.signal(signal.SIGINT, before)
    assert hooks_of(model) == []
    with gnnstab.Trace.open(path) as trace:
        assert len(trace.steps()) == 4 and "closed" in trace.meta
    with gnnstab.Monitor(model, trace=path):
        pass


def test_a_monitor_that_is_not_entered_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python ends no block whose beginning raised."""
    model, path = Net(), tmp_path / "run.gnnstab"
    foreign = torch.optim.SGD(Net().parameters(), 1e-2)

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gnnstab.probe.events.non_finite_detector.NonFiniteDetector.begin", interrupted)
    monitor = gnnstab.Monitor(model, optimizer=foreign, trace=path)
    with pytest.raises(KeyboardInterrupt):
        monitor.__enter__()
    assert hooks_of(model) == []
    assert not foreign._optimizer_step_pre_hooks and not foreign._optimizer_step_post_hooks  # type: ignore[attr-defined]
    with gnnstab.Trace.open(path) as trace:
        assert "closed" in trace.meta


def test_no_python_code_runs_where_sqlite_would_swallow_an_interrupt() -> None:
    """What is raised in an authorizer or a progress handler is a refusal for SQLite: Ctrl-C would come out as a damaged trace."""
    monitor = train(Net())
    monitor.diagnose()
    called: list[str] = []
    sys.setprofile(lambda frame, event, argument: called.append(frame.f_code.co_name) if event == "call" else None)
    try:
        monitor.diagnose()
    finally:
        sys.setprofile(None)
    assert "execute" not in called and "harden" in called
    assert "_authorize" not in called
