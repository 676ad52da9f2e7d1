"""The monitor as a user meets it."""

from __future__ import annotations

import math
import re
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Adam
from torch.testing._internal.distributed.fake_pg import FakeStore

import gnnstab
from gnnstab.errors import GnnstabWarning, TraceError, UnstableError, UsageError
from gnnstab.records import Finding
from gnnstab.trace import Trace
from models.convnets import CASES, Stack, graph, scalar

pytestmark = pytest.mark.usefixtures("brief")


class Unbounded(Stack):
    """No activation that could die and so stop the growth."""

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor, edge_attr: torch.Tensor) -> torch.Tensor:
        for conv in self.convs:
            x = conv(x, edge_index, edge_attr)
        return x


def blow_up(monitor_options: dict[str, Any], steps: int = 30) -> tuple[gnnstab.Monitor, int]:
    """A small network with a learning rate that ruins it; returns the monitor and the number of steps it took."""
    torch.manual_seed(0)
    model, args = Unbounded(2), graph()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e4)
    monitor = gnnstab.Monitor(model, optimizer=optimizer, **monitor_options)
    done = 0
    with monitor:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = model(*args).square().sum()
            loss.backward()
            monitor.loss(loss)
            optimizer.step()
            done += 1
    return monitor, done


def test_a_healthy_run_raises_nothing_and_is_recorded(tmp_path: Path) -> None:
    model, args = CASES[0].make()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    path = tmp_path / "run.gnnstab"
    with gnnstab.Monitor(model, optimizer=optimizer, trace=path, on_finding="raise") as monitor:
        for _ in range(20):
            optimizer.zero_grad()
            loss = scalar(model(*args))
            loss.backward()
            optimizer.step()
            monitor.step(loss=loss)
        live = monitor.trace
        assert live.last_step == 19
    assert monitor.coverage.layers_observed == 2
    with Trace.open(path) as trace:
        rows = trace.steps()
        assert [row.step for row in rows] == list(range(20))
        assert all(row.loss is not None and row.lr == 1e-3 for row in rows)
        assert rows[0].loss > rows[-1].loss
        assert trace.complete
        assert trace.meta["precision"] == "fp32"
        assert trace.events() == ()
        assert {facts.name for facts in trace.layers()} == {"convs.0", "convs.1"}


def test_without_an_optimizer_the_user_says_where_steps_end() -> None:
    model, args = CASES[0].make()
    with gnnstab.Monitor(model) as monitor:
        for value in (3.0, 2.0):
            scalar(model(*args)).backward()
            monitor.step(loss=torch.tensor(value))
        monitor.step()
        trace = monitor.trace
    assert [(row.step, row.loss) for row in trace.steps()] == [(0, 3.0), (1, 2.0)]


def test_what_became_sharp_after_the_last_full_step_is_seen_at_the_end_in_the_mode_that_trained() -> None:
    """Its twin, whose weights stay, is as soft at the end as at the beginning."""
    found = {}
    for factor in (1.0, 100.0):
        model, args = CASES[0].make()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore") as monitor:
            for step in range(30):
                optimizer.zero_grad()
                scalar(model(*args)).backward()
                monitor.step()
                optimizer.step()
                if step == 20:
                    model.convs[0].lin_query.weight.data *= factor
            model.eval()
        assert not model.training
        rows = [row for row in monitor.trace.measures() if row.name == "attention.entropy" and row.head == -1]
        first = rows[0].layer
        assert {(row.step, row.mode) for row in rows if row.layer == first} == {(0, "train"), (29, "train")}
        found[factor] = [row.value for row in rows if row.layer == first]
    assert found[1.0][0] == pytest.approx(found[1.0][1])
    assert found[100.0][0] > 2 * found[100.0][1]


def test_validation_losses_show_overfitting_and_bring_dropout_into_play() -> None:
    model, args = CASES[0].make()
    with gnnstab.Monitor(model, on_finding="raise") as monitor:
        for epoch in range(4):
            for _ in range(5):
                scalar(model(*args)).backward()
                monitor.step(loss=1.0 / (1 + epoch))
            monitor.validation(torch.tensor(1.0))
        diagnosis = monitor.diagnose()
    (finding,) = [f for f in diagnosis.findings if f.code == "GS101"]
    assert (finding.severity, finding.step, finding.value) == ("info", 19, pytest.approx(1.0, abs=0.5))
    assert next(c for c in diagnosis.causes if c.cause == "no-dropout").status == "present"


def test_blowing_up_warns_once_per_finding_and_names_the_place() -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        blow_up({})
    texts = [str(w.message) for w in said if w.category is GnnstabWarning]
    assert len(set(texts)) == len(texts)
    assert len([t for t in texts if "GS502" in t]) == 1
    assert "convs." in next(t for t in texts if "GS502" in t)
    assert "step" in next(t for t in texts if "GS502" in t)


def test_raise_stops_the_run_before_the_weights_move() -> None:
    torch.manual_seed(0)
    model, (x, *rest) = Stack(2), graph()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="raise") as monitor:
        scalar(model(x, *rest)).backward()
        optimizer.step()
        optimizer.zero_grad()
        scalar(model(x * 1e30, *rest)).backward()
        before = [p.detach().clone() for p in model.parameters()]
        with pytest.raises(UnstableError, match="convs") as caught:
            optimizer.step()
    assert caught.value.finding.code == "GS502"
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert not optimizer._optimizer_step_pre_hooks
    assert monitor.diagnose().events


def test_a_loss_that_comes_after_its_step_is_told_of_with_it() -> None:
    torch.manual_seed(0)
    model, args = Stack(1), graph()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    told: list[Finding] = []
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding=told.append) as monitor:
        for loss in (1.0, 1e6):
            assert told == []
            scalar(model(*args)).backward()
            optimizer.step()
            monitor.loss(loss)
        assert [(f.code, f.step) for f in told] == [("GS601", 1)]


def test_ignore_and_a_callable() -> None:
    monitor, done = blow_up({"on_finding": "ignore"})
    assert done == 30
    assert monitor.diagnose().findings
    seen: list[Finding] = []
    blow_up({"on_finding": seen.append})
    assert "GS502" in [finding.code for finding in seen]
    assert len({finding.fingerprint for finding in seen}) == len(seen)


def test_the_report_of_a_run_that_blew_up_names_layer_stage_and_step() -> None:
    monitor, _ = blow_up({"on_finding": "ignore"})
    (finding,) = [f for f in monitor.diagnose().findings if f.code == "GS502"]
    event = next(e for e in monitor.trace.events("non-finite"))
    assert finding.layer == event.layer
    assert finding.step == event.step
    assert str(event.stage) in finding.message


def test_diagnose_after_an_exception_of_the_user() -> None:
    model, args = CASES[0].make()
    monitor = gnnstab.Monitor(model)

    def failing() -> None:
        with monitor:
            scalar(model(*args)).backward()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert monitor.diagnose().coverage.layers_observed == 2


def test_ranks_write_traces_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    model, args = CASES[0].make()
    with gnnstab.Monitor(model, trace=tmp_path / "run.gnnstab") as monitor:
        model(*args)
        monitor.step()
    assert (tmp_path / "run.rank3.gnnstab").exists()
    assert not (tmp_path / "run.gnnstab").exists()


def test_ranks_of_a_process_group_that_the_environment_does_not_name_do_so_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of processes that `torch.multiprocessing.spawn` has begun, which are told their rank by their arguments."""
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    try:
        with gnnstab.Monitor(CASES[0].make()[0], trace=tmp_path / "run.gnnstab"):
            pass
    finally:
        torch.distributed.destroy_process_group()
    assert [path.name for path in tmp_path.glob("run*.gnnstab")] == ["run.rank1.gnnstab"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"on_finding": "shout"}, "on_finding='shout'"),
        ({"schedule": 0}, "schedule=0"),
        ({"schedule": "often"}, "every step"),
        ({"budget": 2.0}, "budget=2.0"),
        ({"optimizer": "Adam"}, "torch optimizer"),
        ({"optimizer": [None]}, "torch optimizer"),
    ],
)
def test_arguments_that_make_no_sense(options: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        gnnstab.Monitor(nn.Linear(2, 2), **options)


def test_a_model_that_is_none_and_a_path_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Module"):
        gnnstab.Monitor(lambda x: x)  # type: ignore[arg-type]
    with pytest.raises(TraceError, match="folder"):
        gnnstab.Monitor(nn.Linear(2, 2), trace=tmp_path / "no" / "run.gnnstab")


def test_a_model_without_any_layer_of_interest_is_never_green() -> None:
    with gnnstab.Monitor(nn.Linear(2, 2)) as monitor:
        monitor.step(loss=1.0)
    assert monitor.coverage.layers_expected == 0
    assert monitor.diagnose().exit_code() == 3


def test_in_a_notebook_a_monitor_shows_what_it_has_recorded_so_far() -> None:
    model, args = Stack(), graph()
    monitor = gnnstab.Monitor(model, on_finding="ignore")
    page = monitor._repr_html_()
    assert "srcdoc" in page
    assert "othing was recorded yet" in page
    assert "o attention was recognised" not in page
    with monitor:
        scalar(model(*args)).backward()
        monitor.step()
        assert monitor._repr_html_() == monitor.diagnose()._repr_html_()
        assert "convs.0" in monitor._repr_html_()


def test_before_the_first_step_a_diagnosis_says_that_nothing_was_recorded(tmp_path: Path) -> None:
    model, args = CASES[0].make()
    with gnnstab.Monitor(model, trace=tmp_path / "run.gnnstab") as monitor:
        before = monitor.diagnose()
        assert before.exit_code() == 3
        assert "nothing was recorded yet" in str(before)
        assert "watched 2 attention layers" in before.target.notes[0]
        assert "monitor.step()" in before.target.notes[0]
        model(*args)
        monitor.step()
        assert monitor.diagnose().target.notes == ()
    with gnnstab.Monitor(model, on_finding="ignore") as unused:
        pass
    assert "nothing was recorded" in str(unused.diagnose())
    assert "nothing was recorded yet" not in str(unused.diagnose())


def test_every_step_schedule_and_nested_monitors() -> None:
    model, args = CASES[0].make()
    with gnnstab.Monitor(model, schedule="every step") as outer, gnnstab.Monitor(model, schedule=2) as inner:
        for _ in range(3):
            scalar(model(*args)).backward()
            inner.step()
            outer.step()
    for monitor, steps in ((outer, {0, 1, 2}), (inner, {0, 2})):
        assert {m.step for m in monitor.trace.measures("attention.entropy")} == steps


def test_a_budget_lowers_the_share_of_steps_that_are_recorded() -> None:
    model, args = CASES[0].make()
    with gnnstab.Monitor(model, budget=1e-4, on_finding="raise") as monitor:
        for _ in range(60):
            scalar(model(*args)).backward()
            monitor.step()
    (rows,) = monitor.trace.sites("convs.0", "score").values()
    assert 0 < len(rows) < 40
    assert len(monitor.trace.steps()) == 60


def test_autocast_is_recorded_in_its_own_precision() -> None:
    torch.manual_seed(0)
    model, (x, *rest) = Stack(1), graph()
    with gnnstab.Monitor(model, on_finding="ignore") as monitor, torch.no_grad():
        for scale in (1.0, 2000.0):
            with torch.autocast("cpu", dtype=torch.float16):
                model(x * scale, *rest)
            monitor.step()
    (event,) = monitor.trace.events("non-finite")
    assert (event.step, event.layer, event.stage, event.origin) == (1, "convs.0", "score", "made-here")
    assert event.detail["dtype"] == "float16"
    assert monitor.trace.meta["precision"] == "fp16"
    assert math.isfinite(monitor.trace.sites("convs.0", "input").popitem()[1]["maximum"][1])


class WithoutRate(torch.optim.Optimizer):
    """Its rate is called otherwise."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"eta": 1e-3})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.add_(parameter.grad, alpha=-group["eta"])


@pytest.mark.parametrize(
    ("optimizer", "given", "kept", "says"),
    [
        (WithoutRate, lambda loss: torch.stack([loss, loss]), True, r"shape \(2,\); its mean is recorded"),
        (Adam, lambda loss: torch.complex(loss, loss).detach(), False, "not one real number"),
        (WithoutRate, lambda loss: torch.empty((), device="meta"), False, "not one real number"),
        (Adam, lambda loss: torch.empty(0), False, "not one real number"),
        (Adam, lambda loss: "low", False, "a str, which is not one real number"),
        (WithoutRate, lambda loss: None, False, "a NoneType, which is not one real number"),
        (Adam, lambda loss: 10**400, False, "a int, which is not one real number"),
        (Adam, lambda loss: loss.detach().reshape(1, 1), True, ""),
    ],
)
def test_every_step_is_recorded_whatever_its_loss_and_optimizer(
    optimizer: Any, given: Any, kept: bool, says: str
) -> None:
    """One warning, and no step is lost; a call with positional and keyword arguments is a usual one."""
    torch.manual_seed(0)
    model, (x, edge_index, edge_attr) = CASES[0].make()
    moves = optimizer(model.parameters())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with gnnstab.Monitor(model, optimizer=moves, loss=scalar if optimizer is WithoutRate else None) as monitor:
            for _ in range(4):
                moves.zero_grad()
                loss = scalar(model(x, edge_index, edge_attr=edge_attr))
                loss.backward()
                monitor.loss(given(loss))
                moves.step()
    told = [
        str(w.message) for w in caught if issubclass(w.category, GnnstabWarning) and "monitor.loss" in str(w.message)
    ]
    assert len(told) == bool(says) and all(re.search(says, message) for message in told)
    diagnosis = monitor.diagnose()
    assert "GS902" not in {f.code for f in diagnosis.findings}
    assert (says.endswith("number")) == any(b.site == "loss" for b in diagnosis.coverage.blind)
    with monitor.trace as trace:
        assert [(row.step, row.loss is not None) for row in trace.steps()] == [(i, kept) for i in range(4)]


def test_a_process_without_a_thread_left_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(TraceError, match="no thread could be started to write it"):
        gnnstab.Monitor(CASES[0].make()[0])
