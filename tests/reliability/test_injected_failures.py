"""Every function of the recorder, the monitor and the trace is made to fail, one after the other, in a training run.

Which functions a run reaches is found by watching one. Each of them is then replaced by one that raises at every call,
and the same run must end with the same outputs and gradients, with one warning, and with a GS902 finding.
"""

from __future__ import annotations

import functools
import gc
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import TransformerConv

import gnnstab
from forked import Child
from gnnstab.errors import TraceError
from gnnstab.evaluation import diagnose_trace
from gnnstab.rules import engine
from side_by_side import WIDTH, Net, Run, brief_trials, codes, graph, identical, run, without_trials

ROOT = str(Path(gnnstab.__file__).parent)
ROOMS = (
    "monitor",
    "layers",
    "probe",
    "probe.optimizer",
    "probe.places",
    "probe.replaying",
    "rules",
    "trace",
    "records",
)
"""Each in a process of its own; a function belongs to the longest of them that its module begins with."""

GUARDS = (
    "probe.error_guard:ErrorGuard.",
    "probe.recorder:Recorder.hand_over_failures",
    "probe.attaching.hooks:Hook.__call__",
    "probe.attaching.hooks:Hook._run",
    "probe.attaching.hooks:Hook.close",
    "probe.attaching.activation_gradients:GradientHook.__call__",
    "probe.attaching.activation_gradients:GradientHook._record",
    "probe.attaching.boundary:_StepHook.__call__",
    "probe.attaching.boundary:_StepHook._step",
    "probe.attaching.boundary:Boundary._after_step",
    "probe.attaching.softmax_tap:Tap.__call__",
    "probe.attaching.softmax_tap:Tap._notice",
    # What answers in the place of the user's own method.
    "probe.attaching.stand_in:Lookalike.__getattr__",
    "probe.attaching.stand_in:method_of_copy",
    # What carries a failure into the trace, and what is called when nothing more can be carried.
    "trace._codec:_detail",
    "trace._codec:to_columns",
    "trace._queue:WriteQueue.put_event",
    "trace._queue:WriteQueue.close",
    "trace._queue:Request.wait",
    "trace._writer:TraceWriter.event",
    "probe.operations._watch:OperationMode.__torch_dispatch__",
    "probe.places._casts:Casts.__torch_function__",
    "probe.places._overflows:Overflows.__torch_function__",
    "probe.places.plain_tensors:PlainScores.__torch_function__",
    # What gives PyG's softmax back: without it every later run of the process has another one.
    "probe.optimizer.softening:Softened.__exit__",
    "monitor.monitor:Monitor._",
    "monitor.monitor:Monitor.loss",
)
"""What catches the failures of all others, and the road that leads there: a few lines each, and nobody can catch theirs.
The steps of the monitor itself that are called by one of these are tried."""

TRIED = (
    "monitor.monitor:Monitor._run_live_rules",
    "monitor.monitor:Monitor._look_at_trace",
    "monitor.monitor:Monitor._on_event",
    "monitor.monitor:Monitor._deduplicate",
)


def test_every_guard_exists() -> None:
    for guard in (*GUARDS, *TRIED):
        module, _, path = guard.partition(":")
        owner, _, name = path.rpartition(".")
        found = functools.reduce(getattr, filter(None, owner.split(".")), import_module(f"gnnstab.{module}"))
        assert any(n.startswith(name) for n in dir(found)), guard
        assert getattr(found, "__module__", found.__name__) == f"gnnstab.{module}", f"{guard} is defined elsewhere"


def is_guard(name: str) -> bool:
    return name.startswith(GUARDS) and name not in TRIED


class Small(nn.Module):
    """One layer, in half the time of `Net`: a run of it meets almost all that one of two layers meets."""

    def __init__(self) -> None:
        super().__init__()
        self.first = TransformerConv(WIDTH, WIDTH, heads=2, concat=False, dropout=0.1, beta=True)
        self.out = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.out(self.first(x, edge_index))
        return out


NETS: tuple[Callable[[], nn.Module], ...] = (Small, Net)
"""A function fails in a run of the first whose run reaches it."""


def loop(make: Callable[[], nn.Module], run: Run) -> None:
    """What a run can meet, briefly: both tiers, evaluation, a loss, and a value that is not finite."""
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    run.started = False
    with run.watching(model, optimizer=optimizer, on_finding="ignore") as monitor:
        run.started = True
        for number in range(3):
            x, edge_index = graph(number)
            if number == 2:
                x[0, 0] = torch.inf
            optimizer.zero_grad()
            output = model(x, edge_index)
            loss = output.square().mean()
            if monitor is not None:
                monitor.loss(loss)
            loss.backward()
            run.keep(output, loss)
            run.keep_gradients(model)
            optimizer.step()
        with torch.no_grad():
            run.keep(model.eval()(*graph(9)))
    run.keep(*model.parameters())


def watched(make: Callable[[], nn.Module]) -> Run:
    """The monitored run."""
    return run(functools.partial(loop, make), Run(True, {"schedule": 3}))


@functools.cache
def plain(make: Callable[[], nn.Module]) -> Run:
    """The run without a monitor."""
    return run(functools.partial(loop, make), Run(False, {}))


UNWARNED = "no warning"


class Reached(NamedTuple):
    """Functions of gnnstab by ``module:name``."""

    functions: dict[str, FunctionType]
    """All that a monitored run calls."""

    in_training: dict[str, FunctionType]
    """Those of them that are called before or beside the trials at the end of the run."""

    judging: frozenset[str]
    """Those that are called by a rule alone: whichever fails there, one and the same handler meets it."""


@pytest.fixture(scope="module")
def reached() -> dict[Callable[[], nn.Module], Reached]:
    """What the runs of each network call."""
    found = {}
    for make in NETS:
        elsewhere: set[CodeType] = set()
        with without_trials():
            in_training = called(make, elsewhere)
        functions = called(make, elsewhere)
        judging = frozenset(name for name, f in functions.items() if f.__code__ not in elsewhere)
        found[make] = Reached(functions, in_training, judging)
    return found


def called(make: Callable[[], nn.Module], elsewhere: set[CodeType]) -> dict[str, FunctionType]:
    """Functions that a run calls; the code of those that not only rules call is added to ``elsewhere``."""
    seen: set[CodeType] = set()

    def look(frame: Any, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(ROOT):
            seen.add(frame.f_code)
            if frame.f_code not in elsewhere and not within_a_rule(frame):
                elsewhere.add(frame.f_code)

    watched(make)  # What is only called while modules are imported is no part of a run.
    threading.setprofile(look)
    sys.setprofile(look)
    try:
        watched(make)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    gc.unfreeze()  # Where what was collected with the tests is among the objects.
    # Functions within functions are made anew by every call; the one that makes them stands for them.
    named = {
        f"{f.__module__.removeprefix('gnnstab.')}:{f.__qualname__}": f for f in gc.get_objects() if plain_function(f)
    }
    gc.freeze()
    return {name: function for name, function in named.items() if function.__code__ in seen}


def within_a_rule(frame: Any) -> bool:
    """True where `engine._judge` stands among the callers."""
    while (frame := frame.f_back) is not None:
        if frame.f_code is engine._judge.__code__:
            return True
    return False


def plain_function(thing: object) -> bool:
    return (
        type(thing) is FunctionType  # What looks like one through its class may run code when it is looked at.
        and str(thing.__module__).startswith("gnnstab.")
        and "<" not in thing.__qualname__
        and not hasattr(thing, "__wrapped__")
    )


def _raises(*args: Any, **kwargs: Any) -> None:
    raise ZeroDivisionError("injected")


@contextmanager
def failing(function: FunctionType) -> Iterator[None]:
    """The function raises at every call, also where what it has returned before is kept."""
    getattr(function.__globals__.get(function.__name__), "cache_clear", lambda: None)()
    code = function.__code__
    function.__code__ = _raises.__code__.replace(co_freevars=code.co_freevars)
    try:
        yield
    finally:
        function.__code__ = code


def room_of(name: str) -> str:
    """The room of a function, ``""`` for one that lies outside of all."""
    return max((room for room in ROOMS if f"{name.partition(':')[0]}.".startswith(f"{room}.")), key=len, default="")


@pytest.mark.slow
@pytest.mark.parametrize("room", ROOMS)
def test_failures_do_not_reach_the_training(room: str, reached: dict[Callable[[], nn.Module], Reached]) -> None:
    makes = {name: make for make in reversed(NETS) for name in reached[make].functions}
    tried = {name: make for name, make in makes.items() if room_of(name) == room and not is_guard(name)}
    assert tried

    def injected() -> dict[str, str]:
        judged = dict.fromkeys(caught_where_a_trace_is_judged(tried, reached[Small]), "")
        # Trials take two thirds of such a run. What is called elsewhere fails there, and what they alone call in brief ones: every function
        # that whole ones reach is reached by those, or its failure would not be warned about.
        found: dict[str, str] = {}
        for name, make in sorted(tried.items()):
            if name in judged:
                continue
            function = reached[make].functions[name]
            with without_trials():
                found[name] = inject(function, make) if name in reached[make].in_training else UNWARNED
            if found[name] == UNWARNED:
                with brief_trials():
                    found[name] = inject(function, make)
        return found | judged

    # In a process of its own: some failures leave a writer thread behind.
    faults = Child(injected).result(300)
    assert faults == dict.fromkeys(tried, "")


def caught_where_a_trace_is_judged(tried: Iterable[str], reached: Reached) -> Iterator[str]:
    """Of each file all functions but one that rules alone call, where a rule fails by them: in training it is this one place that meets it.

    One of each file fails in training; to judge a trace takes a tenth of the time.
    """
    names = sorted(reached.judging.intersection(tried))
    again = [two for one, two in pairwise(names) if one.partition(":")[0] == two.partition(":")[0]]
    if not again:
        return
    with without_trials():
        trace = watched(Small).monitor.trace
    with trace:
        for name in again:
            with failing(reached.functions[name]):
                rules = diagnose_trace(trace).rules
            if any(rule.reason.startswith(engine.RULE_FAILED) for rule in rules):
                yield name


def inject(function: FunctionType, make: Callable[[], nn.Module]) -> str:
    """What went wrong when the function failed; empty when nothing did."""
    this, wanted = Run(True, {"schedule": 3}), plain(make)
    with failing(function):
        try:
            result = run(functools.partial(loop, make), this)
        except BaseException as error:
            # A monitor that cannot be made says so before the training has begun.
            return (
                f"reached the training: {error!r}" if this.started or not isinstance(error, ZeroDivisionError) else ""
            )
    if len(result.kept) != len(wanted.kept) or not all(map(identical, wanted.kept, result.kept)):
        return "changed the training"
    if not result.warned:
        return UNWARNED
    if len(result.warned) != 1:
        return f"{len(result.warned)} warnings: {result.warned}"
    return said(result)


def said(result: Run) -> str:
    """The trace must tell (an event, or rows that are missing), or hold nothing at all."""
    try:
        trace = result.monitor.trace
    except TraceError:
        return ""
    with trace:
        told = (
            trace.events("tool-failure")
            or not trace.complete
            or {"dropped.rows", "malformed.rows", "failure"} & set(trace.meta)
        )
        return "" if told or not trace.keys() else "nothing in the trace tells of it"


def test_a_failure_is_a_finding_and_the_rest_goes_on(reached: dict[Callable[[], nn.Module], Reached]) -> None:
    """What the failed part would have seen is missing; everything else is recorded as ever."""
    with failing(reached[Net].functions["probe.layers._attention:AttentionRecorder.record"]):
        result = watched(Net)
    assert codes(result.monitor).count("GS902") >= 1
    assert "records less from here on; the training is not affected (ZeroDivisionError: injected)" in result.warned[0]
    with result.monitor.trace as trace:
        assert [row.step for row in trace.steps()][:3] == [0, 1, 2]
        assert all(row.grad_norm is not None for row in trace.steps()[:2])
        assert trace.sites(site="score") == {}
