"""The one table of signals: what it says exists, and nobody else spells a name that stands in it."""

from __future__ import annotations

import ast
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

from gnnstab.records import SIGNALS, SITES, vocabulary
from gnnstab.rules import RULES
from gnnstab.rules.limits import limits_of, value_of

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "gnnstab" / "records" / "vocabulary.py"
MEASURES = ("layers/", "probe/", "checkpoint/", "signals/")
"""Rooms that produce numbers; every name is spelled by one of their files at most."""


def spelled(source: str) -> set[str]:
    """The signal names that stand as literals in a file; ``loss`` is a word of the language, no more than a name."""
    constants = (node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant))
    return {value for value in constants if isinstance(value, str) and value in SIGNALS and "." in value}


@cache
def places() -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for folder in ("gnnstab", "cli"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            inside = path.relative_to(ROOT / folder).as_posix()
            if path != TABLE and not inside.startswith("rules/"):
                for name in spelled(path.read_text(encoding="utf-8")):
                    found[name].append(f"{folder}/{inside}")
    return found


@pytest.mark.parametrize("name", SIGNALS)
def test_a_name_is_spelled_by_its_table_its_measure_and_the_rules_alone(name: str) -> None:
    found = places().get(name, [])
    strangers = [path for path in found if not path.removeprefix("gnnstab/").startswith(MEASURES)]
    constant = name.upper().replace(".", "_")
    assert not strangers, f"{name}: import {constant} from gnnstab.records.vocabulary in {strangers}"
    assert len(found) <= 1, f"{name}: one of {found} is its measure; the others import {constant}"


def test_what_is_compared_has_a_name_for_people() -> None:
    assert not [name for name, kind in vocabulary.compared().items() if not 0 < len(kind.words) <= 24]
    named = [kind.words for kind in SIGNALS.values() if kind.words]
    assert len(set(named)) == len(named)


def test_this_guard_can_fail() -> None:
    assert spelled('WATCHED = ("attention.entropy", "loss", "no.signal")') == {"attention.entropy"}
    assert places()["attention.entropy"] == ["gnnstab/probe/statistics/attention.py"]


@pytest.mark.parametrize("name", SIGNALS)
def test_every_name_has_a_constant_that_reads_like_it(name: str) -> None:
    assert getattr(vocabulary, name.upper().replace(".", "_")) == name


@pytest.mark.parametrize("name", SIGNALS)
def test_limits_are_thresholds_of_rules_and_lie_in_order_on_the_worse_side(name: str) -> None:
    kind = SIGNALS[name]
    codes = {rule.code for rule in RULES}
    assert {limit.rule for limit in kind.limits} <= codes
    values = [value_of(limit) for limit in kind.limits]
    assert values == sorted(values, reverse=not kind.rises)
    assert len(list(limits_of(name))) == sum(bool(limit.severity) for limit in kind.limits)


def test_a_configured_threshold_moves_the_limit() -> None:
    (limit, _) = SIGNALS["attention.entropy"].limits
    assert value_of(limit, {"GS301": {"warn_entropy": 0.2}}) == 0.2 != value_of(limit)


def test_sides_scales_sites_and_groups_are_known() -> None:
    groups = {group for kind in SIGNALS.values() for group in kind.groups}
    assert groups == {"trend", "series", "ratio", "setting", "typical"}
    for kind in SIGNALS.values():
        assert kind.worse in ("above", "below")
        assert kind.axis in ("log", "linear", "symlog")
        assert not kind.site or kind.site in SITES
    words = [word for kind in SIGNALS.values() for word in kind.spoken]
    assert len(words) == len(set(words))
    assert len(vocabulary.OF_SITE) == sum(bool(kind.site) for kind in SIGNALS.values())
