"""The JSON report against its schema, and the schema against mistakes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonschema import Draft202012Validator, ValidationError

import examples
import gnnstab
from gnnstab.layers import LAYERS, layer_of
from gnnstab.records import FIVE_CAUSES, FURTHER_CAUSES, LayerFacts, Suppressed
from gnnstab.report import render
from layers.cases import CASES, made
from models.stacks import Stack, random_batch

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "schema" / "diagnosis-1.json").read_text(encoding="utf-8"))
VALIDATOR = Draft202012Validator(SCHEMA)


def test_the_schema_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)


OPEN = {"detail", "trends", "progress", "norm_smallest"}
"""What has keys that depend on what was measured."""


def objects(schema: Any, name: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """(field, part of the schema) of every object that the schema describes."""
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield name, schema
        for key, part in schema.items():
            named = part.items() if key in ("properties", "$defs") else [(name, part)]
            for own, inner in named:
                yield from objects(inner, own)
    elif isinstance(schema, list):
        for part in schema:
            yield from objects(part, name)


def test_the_schema_names_every_field() -> None:
    found = list(objects(SCHEMA))
    assert len(found) > 15
    assert not [name for name, part in found if name not in OPEN and part.get("additionalProperties") is not False]
    assert {name for name, part in found if part.get("additionalProperties") is not False} == OPEN
    assert SCHEMA["$defs"]["cause"]["properties"]["cause"]["enum"] == [*FIVE_CAUSES, *FURTHER_CAUSES]
    known = set(SCHEMA["$defs"]["layer"]["properties"])
    assert set(LayerFacts("a", "B", 0, True).flat()) <= known
    assert {name for kind in LAYERS for name in kind.defaults} <= known
    options = [layer_of(layer).facts("a", layer, 0).options for layer in (made(case)[0] for case in CASES)]
    assert {name for one in options for name in one} <= known


def a_file(tmp_path: Path) -> gnnstab.Diagnosis:
    model = Stack(2, 8)
    optimizer = torch.optim.Adam(model.parameters())
    model(**random_batch(16, 4, 8)).square().mean().backward()
    optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}, tmp_path / "a.pt")
    return gnnstab.diagnose(tmp_path / "a.pt")


def a_folder(tmp_path: Path) -> gnnstab.Diagnosis:
    model = Stack(2, 8)
    for step in range(1, 6):
        for parameter in model.parameters():
            parameter.data *= 1.2
        torch.save({"model": model.state_dict(), "step": 100 * step}, tmp_path / f"step{step}.pt")
    return gnnstab.diagnose(tmp_path)


def a_run_that_died(tmp_path: Path) -> gnnstab.Diagnosis:
    model, batch = Stack(2, 8), random_batch(16, 4, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e18)
    with gnnstab.Monitor(model, optimizer=optimizer, trace=tmp_path / "run.gnnstab", on_finding="ignore"):
        for _ in range(4):
            optimizer.zero_grad()
            model(**batch).square().mean().backward()
            optimizer.step()
    return gnnstab.diagnose(tmp_path / "run.gnnstab")


def a_model_with_what_was_undone(tmp_path: Path) -> gnnstab.Diagnosis:
    model = Stack(2, 8)
    with torch.no_grad():
        model.convs[0].lin_query.weight *= 300
    return gnnstab.diagnose(model, batch=random_batch(16, 4, 8), loss=lambda out, _: out.square().mean())


@pytest.mark.parametrize("seen", [a_file, a_folder, a_run_that_died, a_model_with_what_was_undone])
def test_a_diagnosis_has_no_field_that_the_schema_does_not_name(
    seen: Callable[[Path], gnnstab.Diagnosis], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    document = json.loads(seen(tmp_path).to_json())
    assert document["layers"]
    assert document["signals"]
    assert {"a_folder": "trends", "a_run_that_died": "closed"}.get(seen.__name__, "assumptions") in document["context"]
    VALIDATOR.validate(document)


@pytest.mark.parametrize(
    "place", [(), ("layers", 0), ("signals", 0), ("context",), ("findings", 0), ("causes", 3, "fixes", 0)]
)
def test_a_field_that_nobody_named_is_invalid(place: tuple[str | int, ...]) -> None:
    document = json.loads(render(examples.one_finding(), "json"))
    part = document
    for key in place:
        part = part[key]
    part["surprise"] = 1
    with pytest.raises(ValidationError, match="surprise"):
        VALIDATOR.validate(document)


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
