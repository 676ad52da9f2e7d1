"""The table of formats and the plugins beside it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

import examples
from gnnstab.errors import ConfigurationError, UsageError
from gnnstab.records import Diagnosis
from gnnstab.report import _rendering as rendering
from gnnstab.report import format_names, render, supported
from gnnstab.report.faces import spoken


def test_unknown_formats_and_options_are_refused_with_the_choices() -> None:
    with pytest.raises(UsageError, match="choose from text, json, sarif"):
        render(examples.clean(), "pdf")
    with pytest.raises(UsageError, match=r"format 'json' has no option 'width'; it has: indent"):
        render(examples.clean(), "json", width=80)
    assert supported("json", {"width": 80, "indent": None}) == {"indent": None}


def plugins(monkeypatch: pytest.MonkeyPatch, *values: str) -> None:
    points = tuple(EntryPoint(name="yaml", value=value, group=rendering.GROUP) for value in values)
    monkeypatch.setattr(rendering, "installed", lambda group: points)


def test_a_plugins_format_is_offered_and_used(monkeypatch: pytest.MonkeyPatch) -> None:
    plugins(monkeypatch, "gnnstab.report._json")
    assert "yaml" in format_names()
    assert render(examples.clean(), "yaml") == render(spoken(examples.clean()), "json")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["no.such.module"], r"format plugin 'yaml' \(no.such.module\) failed to load: ModuleNotFoundError"),
        (["gnnstab.report.escape"], "has no function render"),
        (["gnnstab.report._json", "gnnstab.report._text"], "offered by gnnstab.report._json and gnnstab.report._text"),
    ],
)
def test_a_broken_plugin_is_named(monkeypatch: pytest.MonkeyPatch, values: list[str], message: str) -> None:
    plugins(monkeypatch, *values)
    with pytest.raises(ConfigurationError, match=message):
        render(examples.clean(), "yaml")


def test_a_plugin_that_returns_no_text_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(render=lambda diagnosis: b"bytes", __name__="theirs")
    monkeypatch.setattr(rendering, "_module", lambda format: module)
    with pytest.raises(ConfigurationError, match="returned a bytes, not text"):
        render(examples.clean(), "theirs")
    with pytest.raises(UsageError, match="holds one target; 2 were given"):
        render([examples.clean(), examples.clean()], "theirs")


def test_formats_are_loaded_when_asked_for_and_need_no_torch() -> None:
    program = (
        "import sys, gnnstab.report as report\n"
        "assert not [m for m in report.FORMATS.values() if m in sys.modules]\n"
        "import examples\n"
        "for name in report.FORMATS:\n"
        "    assert report.render(examples.one_finding(), name).endswith('\\n')\n"
        "heavy = {'torch', 'torch_geometric', 'matplotlib', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    tests = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", program], cwd=tests, check=True, timeout=60)


@pytest.mark.parametrize("why", ["left out b.pt: is a text file", "nothing"])
def test_a_target_that_failed_without_a_finding_fails_in_every_report_of_a_machine(why: str) -> None:
    def told(diagnosis: Diagnosis) -> tuple[int, int, bool, bool]:
        junit = ElementTree.fromstring(render(diagnosis, "junit").partition("\n")[2])
        run = json.loads(render(diagnosis, "sarif"))["runs"][0]["invocations"][0]
        github = render(diagnosis, "github")
        return (
            int(junit.get("errors", "")),
            len(junit.findall(".//error")),
            run["executionSuccessful"],
            "::error" in github or "::warning" in github,
        )

    clean = examples.clean()
    assert told(clean) == (0, 0, True, False)
    if why == "nothing":
        spoilt = replace(clean, coverage=replace(clean.coverage, layers_observed=0))
    else:
        spoilt = replace(clean, context={**clean.context, "left_out": [why]})
    assert told(spoilt) == (1, 1, False, True)
