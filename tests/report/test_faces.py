"""Texts in the words of the face that shows them, without asking for what was passed."""

from __future__ import annotations

import re
from dataclasses import replace
from inspect import signature

import pytest
from gnnstab.cli.diagnose import command as diagnose_command

import examples
import gnnstab
from gnnstab import Monitor
from gnnstab.errors import UsageError
from gnnstab.records import Cause, Diagnosis, FixAdvice, RuleStatus, Target
from gnnstab.report import render
from gnnstab.report.faces import plain, speak, spoken
from gnnstab.report.summary import how_to_test, whose_weights

PAIRS = [
    ("pass --model pkg.mod:factory --batch FILE", "pass model=, batch="),
    ("pass the model (--model pkg.mod:factory)", "pass the model (model=)"),
    ("pass a batch (--batch FILE)", "pass a batch (batch=)"),
    ("pass --heads N", "pass heads="),
    ("pass --activation NAME", "pass activation="),
    ("--heads 3 contradicts the file", "heads=3 contradicts the file"),
    ("--verify needs a model", "verify=True needs a model"),
]


@pytest.mark.parametrize(("cli", "python"), PAIRS)
def test_both_faces_say_the_same_in_their_own_words(cli: str, python: str) -> None:
    assert speak(cli, "python") == python
    assert speak(python, "cli") == cli
    assert (speak(cli, "cli"), speak(python, "python")) == (cli, python)


def test_an_option_that_the_command_line_has_not_is_not_asked_for_there() -> None:
    told = "no steps were tried; pass optimizer= to have its rate and eps judged"
    assert speak(told, "python") == told
    assert "; pass" not in speak(told, "cli")
    assert "in Python" in speak(told, "cli")


def test_facts_are_no_options() -> None:
    for text in ("heads=3: given", "activation=relu: assumed", "loss=3.1", "diagnose(model, batch=…, loss=…)", "lr=1"):
        assert speak(text, "cli") == speak(text, "python") == text


def test_a_test_of_a_fix_is_a_call_in_python() -> None:
    note = "not tested: gnnstab verify --fix qk-clip --option limit=4, or diagnose --verify"
    told = speak(note, "python")
    assert told == 'not tested: gnnstab.verify(model, ["qk-clip:limit=4"], batch=batch), or diagnose(…, verify=True)'
    assert speak(note, "cli") == note


@pytest.mark.parametrize(
    ("path", "face", "call"),
    [
        ("run.gnnstab", "cli", "diagnose --model … --batch … --verify"),
        ("run.gnnstab", "python", "diagnose(…, model=…, batch=…, verify=True)"),
        ("memory", "python", "monitor.diagnose(verify=True)"),
    ],
)
def test_a_run_says_what_tests_its_fixes_and_that_exists(path: str, face: str, call: str) -> None:
    fix = FixAdvice("lower-lr", "lr", note="not tested: gnnstab verify --fix lower-lr, or diagnose --verify")
    cause = Cause("learning-rate", "root-cause", "", fixes=(fix,))
    shown = spoken(replace(examples.clean(), target=Target("trace", path), causes=(cause,)), face)
    told = how_to_test(shown.causes[0].fixes)
    assert told is not None and told[1] == call
    one = "gnnstab verify --model … --batch … --fix lower-lr"
    assert told[0] == (one if face == "cli" else 'gnnstab.verify(model, ["lower-lr"], batch=batch)')
    known = {option for item in diagnose_command.params for option in item.opts}
    known |= {f"{name}=" for name in signature(Monitor.diagnose if "monitor" in call else gnnstab.diagnose).parameters}
    assert set(re.findall(r"--\w+|\w+=", call)) <= known


def test_a_fix_that_is_judged_on_the_weights_of_a_run_asks_for_them() -> None:
    """A trace holds none, and a model as it is made shows nothing of what the run has done."""
    for fix, file in (("qk-norm", ""), ("score-cap", "CHECKPOINT "), ("qk-clip", "CHECKPOINT ")):
        advice = FixAdvice(fix, "", note=f"not tested: gnnstab verify --fix {fix}, or diagnose --verify")
        cause = Cause("attention-explosion", "root-cause", "", fixes=(advice,))
        shown = spoken(replace(examples.clean(), target=Target("trace", "run.gnnstab"), causes=(cause,)), "cli")
        told = how_to_test(shown.causes[0].fixes)
        assert told is not None and told[0] == f"gnnstab verify {file}--model … --batch … --fix {fix}"
        assert whose_weights(told) == (" CHECKPOINT holds the weights of the run." if file else "")


def test_an_unknown_face_is_refused() -> None:
    with pytest.raises(UsageError, match="python, cli"):
        speak("", "browser")


def asking(diagnosis: Diagnosis, reason: str, **changes: object) -> str:
    shown = spoken(replace(diagnosis, rules=(RuleStatus("GS101", "not-evaluable", reason),), **changes))
    return shown.rules[0].reason


def test_nobody_is_asked_for_what_they_passed() -> None:
    text = "what goes around a layer is code, not weights; pass the model and a batch (--model, --batch)"
    bare = replace(examples.clean(), signals=())
    of_a_file = asking(bare, text, target=Target("checkpoint", "a.pt"))
    assert of_a_file.endswith("pass the model and a batch (model=, batch=)")
    assert asking(bare, text, target=Target("model", "Net")).endswith("; pass a batch (batch=)")
    measured = tuple(replace(s, source="batch") for s in examples.clean().signals)
    assert asking(bare, text, signals=measured) == "what goes around a layer is code, not weights"
    # A trace takes neither: what shows more is a diagnosis of the model.
    assert asking(bare, text, target=Target("trace", "run.gnnstab")).endswith("; diagnose the model with a batch")


def test_terms_of_the_manual_are_told_in_everyday_words() -> None:
    assert plain("0.99 at an input of RMS 1") == "0.99 with the input scaled to size 1"
    assert plain("42 % of node-heads are one-hot") == "42 % of the attention rows look at one neighbour alone"
    assert plain("assumed, for the static gain") == "assumed, for the gain of the weights alone"


@pytest.mark.parametrize("format", ["text", "markdown", "html", "github", "sarif"])
@pytest.mark.parametrize("name", examples.ALL)
def test_every_default_report_speaks_one_face(name: str, format: str) -> None:
    shown = render(examples.ALL[name](), format)
    assert not re.search(r"(?<![\w-])--(model|batch|loss|verify)\b", shown)
    # Rule pages define the terms of the manual; a page shows parts of them, and sarif carries them whole.
    if format in ("text", "github"):
        assert not re.search(r"input of RMS 1|node-head|static gain|Ĥ", shown)


def test_one_diagnosis_is_one_json_document_in_both_faces() -> None:
    diagnosis = examples.many_findings()
    assert render(diagnosis, "json", face="cli") == render(diagnosis, "json", face="python")
