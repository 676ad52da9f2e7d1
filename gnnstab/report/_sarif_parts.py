"""Pieces of a SARIF log: rule descriptors, addresses of files, message text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any
from urllib.parse import quote

from gnnstab.records import Diagnosis
from gnnstab.records.json_numbers import json_number
from gnnstab.report import _rulebook as rulebook
from gnnstab.report import escape

LEVELS = {"error": "error", "warning": "warning", "info": "note"}

LONGEST_MESSAGE = 4000


def descriptor(code: str, diagnoses: Sequence[Diagnosis]) -> dict[str, Any]:
    """One rule as a reporting descriptor, with its page as help; a rule that is not installed here by its findings."""
    rule = rulebook.known().get(code)
    if rule is None:
        found = (f for d in diagnoses for f in (*d.findings, *(s.finding for s in d.suppressed)) if f.code == code)
        name = escape.name(next((f.name for f in found), code))
        return {"id": code, "name": name, "shortDescription": {"text": name}, "fullDescription": {"text": name}}
    sentence = message(rulebook.first_sentence(code) or rule.name)
    page = rulebook.page(code) or sentence
    return {
        "id": code,
        "name": rule.name,
        "shortDescription": {"text": sentence},
        "fullDescription": {"text": sentence},
        "help": {"text": page, "markdown": page},
        "defaultConfiguration": {"level": LEVELS.get(rule.severity, "warning")},
        "properties": {
            "tags": ["numerical-stability", *([rule.cause] if rule.cause else [])],
            "precision": {"high": "high", "medium": "medium", "low": "low"}.get(rule.confidence, "medium"),
            "problem.severity": {"error": "error", "warning": "warning"}.get(rule.severity, "recommendation"),
        },
    }


def artifact_uri(path: str, root: str) -> str:
    """A relative URI for a path inside the project, ``file:`` for one outside of it.

    Hidden and lone-surrogate characters are percent-encoded like any other.
    """
    pure = PurePath(path)
    if pure.is_absolute():
        if root and pure.is_relative_to(root):
            pure = pure.relative_to(root)
        else:
            return "file://" + _quoted(pure.as_posix())
    # A colon in the first segment would read as a scheme; quoting it keeps the reference relative.
    return _quoted(pure.as_posix())


def _quoted(path: str) -> str:
    return quote(path.encode("utf-8", "surrogatepass"), safe="/")


def message(text: str) -> str:
    """Plain message text: nothing in it is taken for a link or a placeholder."""
    shown = escape.sentence(text, 200, LONGEST_MESSAGE)
    shown = re.sub(r"\{(\d+)\}", r"{{\1}}", shown)
    return re.sub(r"\[([^\]]*)\](?=\()", r"\\[\1\\]", shown)


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping without None, non-finite numbers as strings."""
    kept = {key: value for key, value in values.items() if value is not None}
    return {key: json_number(value) if isinstance(value, float) else value for key, value in kept.items()}
