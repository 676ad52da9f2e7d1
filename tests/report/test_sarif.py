"""SARIF: read by somebody else's parser, held to what GitHub code scanning asks for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jsonschema.validators import validator_for

import examples
from example_parts import RULES
from gnnstab.records import Suppressed
from gnnstab.report import render
from gnnstab.report._sarif import artifact_uri, message

pytestmark = pytest.mark.usefixtures("small_rulebook")


def run_of(*diagnoses, **options):
    return json.loads(render(list(diagnoses), "sarif", **options))["runs"][0]


@pytest.fixture(scope="module")
def official():
    path = Path(__file__).parents[1] / "data" / "schemas" / "sarif-2.1.0.json"
    schema = json.loads(path.read_text(encoding="utf-8"))
    return validator_for(schema)(schema)


@pytest.mark.parametrize("name", examples.ALL)
def test_the_official_schema_accepts_it(name: str, official) -> None:
    diagnosis = examples.ALL[name]()
    diagnosis = diagnosis.suppress([Suppressed(finding, "known") for finding in diagnosis.findings[::2]])
    log = json.loads(render(diagnosis, "sarif"))
    assert [error.message for error in official.iter_errors(log)] == []
    assert [rule["id"] for rule in log["runs"][0]["tool"]["driver"]["rules"]] == sorted(RULES)


def test_the_official_schema_refuses_what_is_wrong(official) -> None:
    log = json.loads(render(examples.one_finding(), "sarif"))
    log["runs"][0]["results"][0]["level"] = "fatal"
    assert not official.is_valid(log)


def test_every_rule_has_what_code_scanning_shows() -> None:
    for rule in run_of(examples.clean())["tool"]["driver"]["rules"]:
        assert rule["shortDescription"]["text"]
        assert rule["fullDescription"]["text"]
        assert rule["help"]["text"]
        assert rule["defaultConfiguration"]["level"] in ("error", "warning", "note")
        assert len(rule["id"]) <= 255
        assert len(rule["fullDescription"]["text"]) <= 1024


@pytest.mark.parametrize("base", ["", "https://docs.example.org/gnnstab", "https://docs.example.org/gnnstab/"])
def test_a_rule_has_an_address_only_where_one_is_named(base: str, official) -> None:
    log = json.loads(render([examples.clean()], "sarif", docs_url=base))
    assert official.is_valid(log)
    for rule in log["runs"][0]["tool"]["driver"]["rules"]:
        page = f"https://docs.example.org/gnnstab/rules/{rule['id']}.html"
        assert rule.get("helpUri") == (page if base else None)
        assert "## How it is measured" in rule["help"]["markdown"]


def test_results_point_at_their_rule_file_layer_and_head() -> None:
    run = run_of(examples.many_findings())
    for result in run["results"]:
        assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "runs/7agents/run.gnnstab"
        assert result["partialFingerprints"]["primaryLocationLineHash"]
    by_layer = [r for r in run["results"] if r["ruleId"] == "GS502"]
    assert [place["fullyQualifiedName"] for place in by_layer[0]["locations"][0]["logicalLocations"]] == [
        "encoder.blocks.5.attention",
        "encoder.blocks.5.attention/head 1",
    ]


def test_levels_follow_severity() -> None:
    levels = {r["properties"]["layer"]: r["level"] for r in run_of(examples.hostile_names())["results"]}
    assert set(levels.values()) == {"error"}
    many = run_of(examples.many_findings())["results"]
    assert {r["level"] for r in many} == {"error", "warning", "note"}


def test_fingerprints_are_the_findings_own_and_distinct() -> None:
    results = run_of(examples.many_findings(500, 200))["results"]
    assert len({r["partialFingerprints"]["gnnstab/v1"] for r in results}) == 500


@pytest.mark.parametrize(
    ("path", "root", "uri"),
    [
        ("runs/a b.pt", "", "runs/a%20b.pt"),
        ("/repo/runs/a.pt", "/repo", "runs/a.pt"),
        ("/elsewhere/a.pt", "/repo", "file:///elsewhere/a.pt"),
        ("c:evil.pt", "", "c%3Aevil.pt"),
        ("ü\ud800.pt", "", "%C3%BC%ED%A0%80.pt"),
    ],
)
def test_uris(path: str, root: str, uri: str) -> None:
    assert artifact_uri(path, root) == uri


def test_a_model_in_memory_points_at_the_source_line_of_its_layer() -> None:
    result = run_of(examples.one_finding())["results"][0]
    physical = result["locations"][0]["physicalLocation"]
    assert physical == {"artifactLocation": {"uri": "models/actor.py"}, "region": {"startLine": 41}}


def test_suppressed_findings_stay_with_their_justification() -> None:
    diagnosis = examples.one_finding()
    result = run_of(diagnosis.suppress([Suppressed(diagnosis.findings[0], "known since v1")]))["results"][0]
    assert result["suppressions"] == [{"kind": "external", "justification": "known since v1"}]


def test_what_was_not_seen_is_a_notification() -> None:
    notes = run_of(examples.many_findings())["invocations"][0]["toolExecutionNotifications"]
    texts = [note["message"]["text"] for note in notes]
    assert any("decoder.fused" in text for text in texts)
    assert any(text.startswith("GS604 could not be judged") for text in texts)


def test_text_of_the_target_is_neither_link_nor_placeholder() -> None:
    assert message("see [here](https://example.org) or {0}") == r"see \[here\](https://example.org) or {{0}}"


def test_several_targets_share_one_run() -> None:
    log = json.loads(render([examples.one_finding(), examples.many_findings()], "sarif"))
    assert len(log["runs"]) == 1
    assert len(log["runs"][0]["results"]) == 25
