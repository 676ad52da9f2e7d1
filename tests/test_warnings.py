"""Warnings of a run: what they say, and that they point at the user's line."""

from __future__ import annotations

import copy
import math
import re
import sys
import warnings
from typing import Any

import pytest
import torch

import gnnstab
from gnnstab.errors import GnnstabWarning, UnstableError, UsageError, warn
from gnnstab.monitor._telling import Repeats, in_words
from gnnstab.records import Finding
from gnnstab.rules.gs301_attention_explosion import AttentionExplosion
from gnnstab.rules.selection import Selection
from models.stacks import Stack, random_batch


@pytest.fixture
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return Stack()


def test_a_monitor_that_was_not_entered_says_so_once(model) -> None:
    monitor = gnnstab.Monitor(model)
    with pytest.warns(GnnstabWarning, match="not entered and watches nothing") as told:
        [monitor.step() for _ in range(2)]
    assert len(told) == 1
    assert told[0].filename == __file__


def test_the_optimizer_of_another_model_is_told(model) -> None:
    monitor = gnnstab.Monitor(model, optimizer=torch.optim.SGD(Stack().parameters(), lr=0.1))
    with pytest.warns(GnnstabWarning, match="holds no parameter of the monitored model") as told, monitor:
        pass
    assert told[0].filename == __file__


@pytest.mark.parametrize("how", ["warn", "raise"])
def test_warnings_that_are_errors_end_no_training(how: str, model) -> None:
    """Nor does the run end where it begins, with an optimizer of another model; what is to be raised still is."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    foreign = torch.optim.SGD(Stack().parameters(), lr=0.1)
    steps = []

    def train() -> None:
        with gnnstab.Monitor(model, optimizer=optimizer, on_finding=how):
            for step in range(4):
                optimizer.zero_grad()
                (model(**random_batch()).sum() * (float("nan") if step == 1 else 1.0)).backward()
                optimizer.step()
                steps.append(step)

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("error")
        with gnnstab.Monitor(model, optimizer=foreign):
            pass
        if how == "raise":
            with pytest.raises(UnstableError):
                train()
        else:
            train()
    assert len(steps) == (4 if how == "warn" else 1)
    texts = [str(one.message) for one in said]
    assert "holds no parameter" in texts[0] and any("GS502" in text for text in texts) == (how == "warn")
    assert {one.filename for one in said} == {__file__} and all(one.category is GnnstabWarning for one in said)


def test_the_right_optimizer_is_not(model) -> None:
    with gnnstab.Monitor(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1)):
        pass


def test_a_finding_of_a_live_run_points_at_the_line_of_the_step(model) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def train() -> None:
        with gnnstab.Monitor(model, optimizer=optimizer):
            (model(**random_batch()).sum() * float("nan")).backward()
            optimizer.step()

    with pytest.warns(GnnstabWarning, match="GS502") as told:
        train()
    assert {item.filename for item in told} == {__file__}


def test_the_frames_of_the_machinery_are_left_out() -> None:
    namespace = {"__name__": "torch.optim.optimizer", "warn": warn}
    exec("def step():\n    warn('here')\n", namespace)
    with pytest.warns(GnnstabWarning, match="here") as told:
        namespace["step"]()
    assert (told[0].filename, told[0].lineno) == (__file__, sys._getframe().f_lineno - 1)


@pytest.mark.parametrize("given", ["GS3,gs401", ["GS3", "GS401"], ("gs3,GS401",)])
def test_a_selection_is_a_text_or_a_list(given) -> None:
    selection = Selection.parse(given, "GS303", codes=["GS301", "GS303", "GS401", "GS601"])
    assert selection.select == ("GS3", "GS401")
    assert [code for code in ("GS301", "GS303", "GS401", "GS601") if selection.includes(code)] == ["GS301", "GS401"]


def test_information_is_handed_over_and_no_warning() -> None:
    told: list[Finding] = []
    quiet, loud = (
        AttentionExplosion().finding(
            "scores grow", severity=severity, name="score.growth", value=1.0, limit=0.5, layer=severity
        )
        for severity in ("info", "warning")
    )

    def act(found: list[Finding], how: Any) -> None:
        monitor = gnnstab.Monitor(torch.nn.Linear(2, 2), on_finding=how)
        monitor._waiting = found
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "gnnstab: the monitor was not entered")
            monitor._act()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for how in ("warn", "raise", "ignore"):
            act([quiet], how)
    act([quiet, loud], told.append)
    assert told == [quiet, loud]
    with pytest.warns(GnnstabWarning, match="scores grow"):
        act([quiet, loud], "warn")
    with pytest.raises(UnstableError):
        act([quiet, loud], "raise")


@pytest.mark.parametrize("large", [True, False], ids=["large input", "repaired twin"])
def test_a_rate_that_is_warned_of_live_names_an_input_that_is_as_likely(large: bool, model) -> None:
    batch = random_batch()
    batch["x"] = batch["x"] * (300.0 if large else 1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05 if large else 1e3)

    def train() -> None:
        with gnnstab.Monitor(model, optimizer=optimizer) as monitor:
            for _ in range(6):
                optimizer.zero_grad()
                loss = model(**batch).square().mean()
                loss.backward()
                monitor.loss(loss)
                optimizer.step()

    with pytest.warns(GnnstabWarning) as told:
        train()
    said = [str(item.message) for item in told]
    rates = [text for text in said if text.startswith("GS601")]
    assert rates
    assert all(("The input `x` has RMS" in text) == large for text in rates)
    assert not any("cause not established" in text for text in said)


def test_a_monitor_that_is_used_without_with_says_so_in_its_diagnosis(model) -> None:
    monitor = gnnstab.Monitor(model)
    with pytest.warns(GnnstabWarning, match="not entered and watches nothing") as told:
        [monitor.loss(torch.tensor(1.0)) for _ in range(2)]
    assert len(told) == 1
    assert "nothing was recorded yet: use `with Monitor(...) as monitor:`" in str(monitor.diagnose())
    with gnnstab.Monitor(model) as entered:
        assert "use `with" not in str(entered.diagnose())


@pytest.mark.parametrize(
    ("keyword", "told"),
    [
        ("select", "pass it to monitor.diagnose(select=…)"),
        ("verify", "pass it to monitor.diagnose(verify=…)"),
        ("optimiser", "did you mean 'optimizer'?"),
        ("xyz", "it takes model, optimizer, trace"),
    ],
)
def test_an_unknown_argument_is_answered_with_its_place(model, keyword: str, told: str) -> None:
    with pytest.raises(UsageError, match=re.escape(told)):
        gnnstab.Monitor(model, **{keyword: None})


def test_what_is_true_of_several_layers_is_one_warning(model) -> None:
    """A run that a rate of 1e3 ends at once: every layer explodes, and each rule speaks once."""
    batch, optimizer = random_batch(), torch.optim.SGD(model.parameters(), lr=1e3)
    heard: list[Finding] = []
    said: list[str] = []
    for on_finding in ("warn", heard.append):
        state = copy.deepcopy(model.state_dict())
        with warnings.catch_warnings(record=True) as told, gnnstab.Monitor(model, optimizer=optimizer, on_finding=on_finding) as monitor:  # fmt: skip
            warnings.simplefilter("always")
            for _ in range(4):
                optimizer.zero_grad()
                loss = model(**batch).square().mean()
                loss.backward()
                monitor.loss(loss)
                optimizer.step()
        said += [str(item.message) for item in told]
        model.load_state_dict(state)
    alike = [finding for finding in heard if finding.code == "GS301"]
    layers = {finding.layer for finding in alike}
    assert len(layers) > 1, "a callable hears each finding"
    (text,) = in_words(alike)
    assert all(layer in text for layer in layers)
    assert "Alike in" in text
    rates = sum(text.startswith("GS601") for text in said)
    assert 1 <= rates < sum(finding.code == "GS601" for finding in heard), said
    assert not any(text.startswith("GS301") for text in said), "what follows from the rate that was told"


def test_a_rate_is_told_again_where_it_got_ten_times_worse_and_what_follows_later_is_told() -> None:
    def found(code: str, value: float, step: int) -> Finding:
        return Finding(code, "n", "c", "warning", "high", None, None, step, "loss", value, 1.25, "", "")

    repeats = Repeats()
    assert repeats.news([found("GS301", 9.0, 0)]), "before anything is known of the rate"
    first = found("GS601", 2.5, 1)
    assert repeats.news([found("GS603", 9.0, 1), first]) == [first]
    assert repeats.news([found("GS601", 20.0, 2), found("GS301", 9.0, 2)]) == []
    assert repeats.news([found("GS601", 30.0, 3)]), "ten times as far beyond its limit"
    assert repeats.news([found("GS601", math.inf, 4), found("GS502", math.nan, 4)])
    assert repeats.news([found("GS601", math.nan, 5), found("GS603", 9.0, 104)]) == []
    assert repeats.news([found("GS603", 9.0, 106)]), "a hundred steps later it is a matter of its own"


def test_nothing_that_differs_is_left_out_of_a_warning() -> None:
    """The same rule about the model and its layers, about two signals of a layer, and about one layer twice."""

    def found(layer: str | None, signal: str, message: str) -> Finding:
        return Finding("GS601", "n", "learning-rate", "error", "high", layer, None, None, signal, 1.0, 0.0, "", message)

    rms = [found(f"convs.{i}", "output.rms", f"convs.{i} grew.") for i in range(5)]
    fresh = [found(None, "loss", "The loss rose."), *rms, found("convs.1", "score.growth", "Scores."), found(None, "loss", "Again."), found("convs.0", "output.rms", "Twice.")]  # fmt: skip
    assert in_words(fresh) == [
        "GS601 n: The loss rose.",
        "GS601 n: convs.0 grew. Alike in convs.1, convs.2, convs.3 and 1 more layer.",
        "GS601 n: Scores.",
        "GS601 n: Again.",
        "GS601 n: Twice.",
    ]
