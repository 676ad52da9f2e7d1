"""Recommended changes as diffs of the user's own source, where the model is at hand and the place is certain."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gnnstab.fixes.source_diff import diff
from gnnstab.records import Diagnosis, FixAdvice, LayerFacts

if TYPE_CHECKING:
    from torch import nn


def in_own_lines(diagnosis: Diagnosis, model: nn.Module) -> Diagnosis:
    """The diagnosis with each change of a root or contributing cause as a unified diff of the model's own file.

    A change whose place is not certain there stays the code that it was. Nothing is written.
    """
    causes = tuple(
        replace(cause, fixes=tuple(_advice(fix, model, diagnosis.layers) for fix in cause.fixes))
        if cause.status in ("root-cause", "contributing")
        else cause
        for cause in diagnosis.causes
    )
    return replace(diagnosis, causes=causes)


def own_lines(model: nn.Module, fix: str, options: Mapping[str, Any], layers: Sequence[LayerFacts] = ()) -> str:
    """The change of a fix as a unified diff of the model's own file; empty where its place there is not certain."""
    try:
        return (diff(model, fix, layers, **options) or "").rstrip("\n")
    except (OSError, UnicodeDecodeError):  # the file is gone, or no text
        return ""


def _advice(fix: FixAdvice, model: nn.Module, layers: Sequence[LayerFacts]) -> FixAdvice:
    found = own_lines(model, fix.fix, _options(fix.note), layers)
    return replace(fix, change=found) if found else fix


def _options(note: str) -> dict[str, Any]:
    """The options that the note tells to test the fix with."""
    options: dict[str, Any] = {}
    for key, value in re.findall(r"--option (\w+)=([^\s,]+)", note):
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[key] = value
    return options
