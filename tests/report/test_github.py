"""GitHub workflow commands, read the way the runner reads them."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

import examples
from gnnstab.report import render

COMMAND = re.compile(r"::(?P<command>[a-z]+) (?P<properties>[^:]*)::(?P<data>.*)")


def commands(text: str) -> list[tuple[str, dict[str, str], str]]:
    """Commands as the runner sees them: a line that begins with ``::`` after blanks."""
    found = []
    for line in re.split(r"\r\n|\n|\r", text):
        if line.lstrip().startswith("::"):
            match = COMMAND.fullmatch(line)
            assert match, line
            properties = dict(part.split("=", 1) for part in match["properties"].split(","))
            found.append((match["command"], {k: decode(v) for k, v in properties.items()}, decode(match["data"])))
        else:
            assert "##[" not in line
    return found


def decode(text: str) -> str:
    for code, character in (("%3A", ":"), ("%2C", ","), ("%0A", "\n"), ("%0D", "\r"), ("%25", "%")):
        text = text.replace(code, character)
    return text


@pytest.mark.parametrize("name", examples.ALL)
def test_one_command_per_rule_and_severity(name: str) -> None:
    diagnosis = examples.ALL[name]()
    found = commands(render(diagnosis, "github"))
    levels = {"error": "error", "warning": "warning", "info": "notice"}
    expected = {(levels[f.severity], f"{f.code} {f.name}") for f in diagnosis.findings}
    assert sorted((command, properties["title"]) for command, properties, _ in found) == sorted(expected)
    assert len(render(diagnosis, "github").splitlines()) <= 15


def test_file_title_layer_head_and_number() -> None:
    found = commands(render(examples.many_findings(), "github"))
    command, properties, data = next(c for c in found if "GS301" in c[1]["title"])
    assert command == "error"
    assert properties == {"file": "models/actor.py", "line": "41", "title": "GS301 attention-explosion"}
    place = "encoder.blocks.0.attention, head 0, step 1200 and 5 more places"
    assert data.startswith(f"{place}: attention.entropy 0.09 < 0.1")


PATCH = "--- a/nets/actor.py\n+++ b/nets/actor.py\n@@ -3,3 +3,3 @@\n a = 1\n-b = 2\n+b = 3\n c = 4"


@pytest.mark.parametrize(("change", "place"), [(PATCH, {"file": "nets/actor.py", "line": "4"}), ("b = 3", {})])
def test_a_file_is_named_where_a_line_of_it_is_known(change: str, place: dict[str, str]) -> None:
    base = examples.one_finding()
    causes = tuple(replace(c, fixes=tuple(replace(f, change=change) for f in c.fixes)) for c in base.causes)
    of_file = replace(base.target, kind="checkpoint", path="actor.pt")
    layers = tuple(replace(layer, source_file=None) for layer in base.layers)
    ((_, properties, _),) = commands(render(replace(base, causes=causes, target=of_file, layers=layers), "github"))
    assert {key: value for key, value in properties.items() if key != "title"} == place


@pytest.mark.parametrize("format", ["text", "github", "markdown"])
def test_a_layer_name_cannot_give_the_runner_a_command(format: str) -> None:
    hostile = "::set-output name=x::y"
    base = examples.one_finding()
    finding = replace(base.findings[0], layer=hostile, message=f"ends here {hostile} ##[error]x ##vso[task.complete]y")
    text = render(replace(base, findings=(finding,)), format)
    assert not [line for line in text.splitlines() if line.lstrip().startswith("::set-output")]
    assert "##[" not in text and "##vso[" not in text


def test_nothing_evaluable_is_a_warning() -> None:
    unjudged = replace(examples.clean(), rules=())
    assert [command for command, _, _ in commands(render(unjudged, "github"))] == ["warning"]
