"""The JSON report against its schema, and the schema against mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator, ValidationError

import examples
from gnnstab.records import Suppressed
from gnnstab.report import render

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "schema" / "diagnosis-1.json").read_text(encoding="utf-8"))
VALIDATOR = Draft202012Validator(SCHEMA)


def test_the_schema_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("name", examples.ALL)
def test_every_example_is_valid(name: str) -> None:
    VALIDATOR.validate(json.loads(render(examples.ALL[name](), "json")))


def test_suppressed_findings_are_valid() -> None:
    diagnosis = examples.one_finding()
    suppressed = diagnosis.suppress([Suppressed(diagnosis.findings[0], "accepted until v2", "baseline")])
    document = json.loads(render(suppressed, "json"))
    VALIDATOR.validate(document)
    assert document["findings"] == []
    assert document["suppressed"][0]["finding"]["code"] == "GS301"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema_version",), "2"),
        (("causes", 0, "cause"), "beta-disabled"),
        (("causes", 1, "status"), "guilty"),
        (("findings", 0, "severity"), "fatal"),
        (("findings", 0, "value"), "NaN"),
        (("findings", 0, "fingerprint"), "short"),
        (("rules", 0, "status"), "ok"),
        (("coverage", "layers_observed"), -1),
        (("target", "kind"), "folder"),
    ],
)
def test_a_broken_contract_is_invalid(path: tuple[str | int, ...], value: object) -> None:
    document = json.loads(render(examples.one_finding(), "json"))
    part = document
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    with pytest.raises(ValidationError):
        VALIDATOR.validate(document)


@pytest.mark.parametrize("key", SCHEMA["required"])
def test_a_missing_key_is_invalid(key: str) -> None:
    document = json.loads(render(examples.clean(), "json"))
    del document[key]
    with pytest.raises(ValidationError):
        VALIDATOR.validate(document)


def test_non_finite_numbers_are_strings() -> None:
    document = json.loads(render(examples.nan_values(), "json"), parse_constant=lambda name: pytest.fail(name))
    assert [finding["value"] for finding in document["findings"]] == ["nan", "-inf"]


def test_several_targets_are_an_array() -> None:
    document = json.loads(render([examples.clean(), examples.one_finding()], "json", indent=None))
    assert [len(d["findings"]) for d in document] == [0, 1]


def test_lone_surrogates_survive_utf8() -> None:
    text = render(examples.hostile_names(), "json").encode().decode()
    assert "lone\ud800surrogate" in {layer["name"].split()[0] for layer in json.loads(text)["layers"]}
