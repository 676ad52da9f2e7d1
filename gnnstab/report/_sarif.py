"""The report for code scanning: SARIF 2.1.0, in the form that GitHub accepts.

One run for all targets (GitHub refuses several runs of one tool in one upload), every known rule in the driver, the
checked file as the physical location and layer and head as logical locations.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any
from urllib.parse import quote

from gnnstab import __version__
from gnnstab.records import Diagnosis, Finding
from gnnstab.records.json_numbers import json_number
from gnnstab.report import _rulebook as rulebook
from gnnstab.report import escape, summary
from gnnstab.report.numbers import measured
from gnnstab.rules import RULES

LEVELS = {"error": "error", "warning": "warning", "info": "note"}
LONGEST_MESSAGE = 4000
SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def render_many(diagnoses: Sequence[Diagnosis], *, root: str = "", docs_url: str = "") -> str:
    """A SARIF log with the results of all targets in one run; absolute paths below ``root`` become relative to it.

    ``docs_url`` is where the built documentation is served: rules point at their page there; without it they carry the page alone.
    """
    codes = rulebook.codes(diagnoses)
    position = {code: i for i, code in enumerate(codes)}
    uris = [artifact_uri(d.target.path, root) for d in diagnoses if d.target.kind != "model"]
    run = {
        "tool": {
            "driver": {
                "name": "gnnstab",
                "version": __version__,
                "semanticVersion": __version__,
                "rules": [descriptor(code, diagnoses, docs_url) for code in codes],
            }
        },
        "invocations": [
            {
                "executionSuccessful": not any(summary.failures(d) for d in diagnoses),
                "toolExecutionNotifications": [n for d in diagnoses for n in _notifications(d, position)],
            }
        ],
        "artifacts": [{"location": {"uri": uri}} for uri in dict.fromkeys(uris)],
        "columnKind": "utf16CodeUnits",
        "results": [result for d in diagnoses for result in _results(d, position, root)],
    }
    log = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    # Escaped to ASCII: lone surrogates in names survive, and no viewer has to guess the encoding.
    return json.dumps(log, indent=2, allow_nan=False) + "\n"


def _results(diagnosis: Diagnosis, position: dict[str, int], root: str) -> Iterator[dict[str, Any]]:
    for finding in summary.in_reading_order(diagnosis):
        yield _result(diagnosis, finding, position, root)
    for item in diagnosis.suppressed:
        suppression = {"kind": "external", "justification": escape.sentence(item.reason)}
        yield {**_result(diagnosis, item.finding, position, root), "suppressions": [suppression]}


def _result(diagnosis: Diagnosis, finding: Finding, position: dict[str, int], root: str) -> dict[str, Any]:
    return {
        "ruleId": finding.code,
        "ruleIndex": position[finding.code],
        "level": LEVELS[finding.severity],
        "message": {"text": message(f"{finding.message} ({summary.where(finding, diagnosis)}: {measured(finding)})")},
        "locations": [_location(diagnosis, finding, root)],
        # GitHub follows an alert by this key alone; without it the key would be computed from a line of the checkpoint.
        "partialFingerprints": {
            "primaryLocationLineHash": f"{finding.fingerprint}:1",
            "gnnstab/v1": finding.fingerprint,
        },
        "properties": plain(
            {
                "cause": finding.cause,
                "confidence": finding.confidence,
                "signal": finding.signal,
                "value": finding.value,
                "threshold": finding.threshold,
                "unit": finding.unit,
                "layer": finding.layer,
                "head": finding.head,
                "worstHead": None if (worst := summary.worst_head(diagnosis, finding)) is None else worst.head,
                "step": finding.step,
                "explainedBy": finding.explained_by,
            }
        ),
    }


def _location(diagnosis: Diagnosis, finding: Finding, root: str) -> dict[str, Any]:
    parts = {"physicalLocation": _physical(diagnosis, finding, root), "logicalLocations": _logical(finding)}
    return {name: part for name, part in parts.items() if part}


def _physical(diagnosis: Diagnosis, finding: Finding, root: str) -> dict[str, Any] | None:
    """The checked file; for a model in memory the source line of the layer's class, where known."""
    path, line = diagnosis.target.path, 1
    if diagnosis.target.kind == "model":
        source = next((x.source_file for x in diagnosis.layers if x.name == finding.layer and x.source_file), None)
        if source is None:
            return None
        path, _, number = source.rpartition(":")
        path, line = (path, max(1, int(number))) if path and number.isdecimal() else (source, 1)
    return {"artifactLocation": {"uri": artifact_uri(path, root)}, "region": {"startLine": line}}


def _logical(finding: Finding) -> list[dict[str, Any]]:
    if finding.layer is None:
        return []
    layer = {
        "name": finding.layer.rpartition(".")[2] or finding.layer,
        "fullyQualifiedName": finding.layer,
        "kind": "layer",
    }
    if finding.head is None:
        return [layer]
    head = f"head {finding.head}"
    return [layer, {"name": head, "fullyQualifiedName": f"{finding.layer}/{head}", "kind": "attention head"}]


def _notifications(diagnosis: Diagnosis, position: dict[str, int]) -> list[dict[str, Any]]:
    """What was not seen and could not be judged: silence would read as health."""
    notes: list[dict[str, Any]] = [
        {"level": "error", "message": {"text": message(why)}} for why in summary.failures(diagnosis)
    ]
    notes += [
        {"level": "warning", "message": {"text": message(f"Not observed: {b.layer}, {b.site}: {b.reason}")}}
        for b in diagnosis.coverage.blind
    ]
    for rule in diagnosis.rules:
        if rule.status == "not-evaluable":
            text = message(f"{rule.code} could not be judged: {rule.reason}")
            reference = {"id": rule.code, "index": position[rule.code]}
            notes.append({"level": "note", "message": {"text": text}, "associatedRule": reference})
    return notes


def descriptor(code: str, diagnoses: Sequence[Diagnosis], docs_url: str = "") -> dict[str, Any]:
    """One rule as a reporting descriptor, with its page as help; a rule that is not installed here by its findings."""
    rule = rulebook.known().get(code)
    if rule is None:
        found = (f for d in diagnoses for f in (*d.findings, *(s.finding for s in d.suppressed)) if f.code == code)
        name = escape.name(next((f.name for f in found), code))
        return {"id": code, "name": name, "shortDescription": {"text": name}, "fullDescription": {"text": name}}
    sentence = message(rulebook.first_sentence(code) or rule.name)
    page = rulebook.page(code) or sentence
    own = any(rule.code == code for rule in RULES)  # The documentation has no page for the rule of a plugin.
    return {
        "id": code,
        "name": rule.name,
        "shortDescription": {"text": sentence},
        "fullDescription": {"text": sentence},
        "help": {"text": page, "markdown": page},
        **({"helpUri": f"{docs_url.rstrip('/')}/rules/{code}.html"} if docs_url and own else {}),
        "defaultConfiguration": {"level": LEVELS.get(rule.severity, "warning")},
        "properties": {
            "tags": ["numerical-stability", *([rule.cause] if rule.cause else [])],
            "precision": rule.confidence,
            "problem.severity": "recommendation" if rule.severity == "info" else rule.severity,
        },
    }


def artifact_uri(path: str, root: str) -> str:
    """A relative URI for a path inside the project, ``file:`` for one outside of it.

    Hidden and lone-surrogate characters are percent-encoded like any other.
    """
    pure = PurePath(path)
    inside = bool(root) and pure.is_relative_to(root)
    if pure.is_absolute() and inside:
        pure = pure.relative_to(root)
    # A colon in the first segment would read as a scheme; quoting it keeps the reference relative.
    quoted = quote(pure.as_posix().encode("utf-8", "surrogatepass"), safe="/")
    return f"file://{quoted}" if pure.is_absolute() else quoted


def message(text: str) -> str:
    """Plain message text: nothing in it is taken for a link or a placeholder."""
    shown = escape.sentence(text, 200, LONGEST_MESSAGE)
    shown = re.sub(r"\{(\d+)\}", r"{{\1}}", shown)
    return re.sub(r"\[([^\]]*)\](?=\()", r"\\[\1\\]", shown)


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping without None, non-finite numbers as strings."""
    kept = {key: value for key, value in values.items() if value is not None}
    return {key: json_number(value) if isinstance(value, float) else value for key, value in kept.items()}
