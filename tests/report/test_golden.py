"""Every format against its golden files, byte for byte. `GNNSTAB_REGENERATE=1 pytest tests/report` rewrites them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import examples
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


@pytest.mark.usefixtures("small_rulebook")
@pytest.mark.parametrize("format", SUFFIX)
def test_same_input_gives_the_same_bytes(format: str) -> None:
    assert render(examples.hostile_names(), format) == render(examples.hostile_names(), format)


def test_every_golden_file_belongs_to_a_test() -> None:
    expected = {golden(format, name).name for format in SUFFIX for name in examples.ALL}
    assert {path.name for path in GOLDEN.iterdir()} == expected
