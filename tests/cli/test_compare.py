"""`gnnstab compare`."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import examples


def test_growth_fails_only_when_asked(cli) -> None:
    assert cli("compare", "clean.pt", "one.pt").code == 0
    assert cli("compare", "clean.pt", "one.pt", "--fail-on-growth", "2x").code == 1
    assert cli("compare", "clean.pt", "one.pt", "--fail-on-growth", "1000").code == 0
    assert cli("compare", "one.pt", "one.pt", "--fail-on-growth", "1.01×").code == 0


def test_a_layer_that_is_gone_fails_only_when_growth_is_asked_for(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = examples.clean()
    monkeypatch.setitem(examples.ALL, "less", lambda: replace(whole, layers=whole.layers[:-1]))
    assert cli("compare", "clean.pt", "less.pt").code == 0
    assert cli("compare", "clean.pt", "less.pt", "--fail-on-growth", "2x").code == 1
    assert cli("compare", "less.pt", "clean.pt", "--fail-on-growth", "2x").code == 0


def test_nothing_in_common_is_3_and_unreadable_2(cli) -> None:
    assert cli("compare", "clean.pt", "many.pt").code == 3
    assert cli("compare", "clean.pt", "missing.pt").code == 2


def test_a_file_that_was_left_out_is_an_error(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    unread = {"left_out": ["left out b.pt: is empty"]}
    monkeypatch.setitem(examples.ALL, "torn", lambda: replace(examples.clean(), context=unread))
    ran = cli("compare", "clean.pt", "torn.pt")
    assert ran.code == 2 and "error: left out b.pt: is empty" in ran.err
    assert cli("compare", "clean.pt", "clean.pt").code == 0


@pytest.mark.parametrize("factor", ["x", "0.5x", "1x", "-2", "nan", "2y"])
def test_factors_must_be_factors(cli, factor: str) -> None:
    ran = cli("compare", "clean.pt", "one.pt", f"--fail-on-growth={factor}")
    assert ran.code == 2
    assert "such as 2x" in ran.err


def test_json(cli) -> None:
    document = json.loads(cli("compare", "clean.pt", "one.pt", "--format", "json").out)
    assert document["after"]["path"] == "checkpoints/agents7/actor.pt"
