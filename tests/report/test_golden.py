"""Every format against its golden files, byte for byte. `GNNSTAB_REGENERATE=1 pytest tests/report` rewrites them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import examples
from gnnstab.records import Diagnosis
from gnnstab.report import render

GOLDEN = Path(__file__).parent / "golden"
SUFFIX = {"text": "txt", "json": "json", "sarif": "sarif", "junit": "xml", "github": "github.txt", "markdown": "md"}


def golden(format: str, name: str) -> Path:
    return GOLDEN / f"{name}.{SUFFIX[format]}"


@pytest.mark.usefixtures("small_rulebook")
@pytest.mark.parametrize("name", examples.ALL)
@pytest.mark.parametrize("format", SUFFIX)
def test_golden(format: str, name: str) -> None:
    produced = render(examples.ALL[name](), format).encode()
    path = golden(format, name)
    if os.environ.get("GNNSTAB_REGENERATE"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(produced)
    assert produced == path.read_bytes(), f"{path.name} differs; GNNSTAB_REGENERATE=1 rewrites it"


def nudged(value: Any, towards: float) -> Any:
    """The record with every number in it moved by one unit in the last place, as another processor may compute it."""
    if isinstance(value, float):  # zero, infinity and NaN come out of an operation exactly or not at all
        return math.nextafter(value, towards) if value and math.isfinite(value) else value
    if isinstance(value, np.ndarray):
        return np.array([nudged(item, towards) for item in value.tolist()]) if value.dtype.kind == "f" else value
    if is_dataclass(value) and not isinstance(value, type):
        changed = {field.name: nudged(getattr(value, field.name), towards) for field in fields(value)}
        return replace(value, **changed)
    if isinstance(value, Mapping):
        return {key: nudged(item, towards) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(nudged(item, towards) for item in value)
    return value


def numbers(value: Any) -> list[float]:
    """Every finite float within a record that is not zero."""
    if isinstance(value, float):
        return [value] if value and math.isfinite(value) else []
    if isinstance(value, np.ndarray):
        return numbers(value.tolist())
    if is_dataclass(value) and not isinstance(value, type):
        return [number for field in fields(value) for number in numbers(getattr(value, field.name))]
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else ()
    return [number for item in items for number in numbers(item)]


@pytest.mark.usefixtures("small_rulebook")
@pytest.mark.parametrize("towards", [math.inf, -math.inf, 0.0])
@pytest.mark.parametrize("name", examples.ALL)
def test_the_last_digit_of_an_input_changes_no_byte(name: str, towards: float) -> None:
    diagnosis: Diagnosis = examples.ALL[name]()
    moved = nudged(diagnosis, towards)
    before, after = numbers(diagnosis), numbers(moved)
    assert len(before) > 50 and all(a != b for a, b in zip(before, after, strict=True))
    for format in SUFFIX:
        assert render(moved, format) == golden(format, name).read_text(encoding="utf-8"), format


@pytest.mark.usefixtures("small_rulebook")
@pytest.mark.parametrize("format", SUFFIX)
def test_same_input_gives_the_same_bytes(format: str) -> None:
    assert render(examples.hostile_names(), format) == render(examples.hostile_names(), format)


def test_every_golden_file_belongs_to_a_test() -> None:
    expected = {golden(format, name).name for format in SUFFIX for name in examples.ALL}
    assert {path.name for path in GOLDEN.iterdir()} == expected
