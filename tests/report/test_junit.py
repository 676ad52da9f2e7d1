"""JUnit XML, read back by a JUnit parser."""

from __future__ import annotations

import pytest
from junitparser import JUnitXml

import examples
from gnnstab.errors import UsageError
from gnnstab.report import render

pytestmark = pytest.mark.usefixtures("small_rulebook")


def parsed(name: str, **options) -> JUnitXml:
    return JUnitXml.fromstring(render(examples.ALL[name](), "junit", **options).encode())


@pytest.mark.parametrize("name", examples.ALL)
def test_totals_are_the_sums_of_the_cases(name: str) -> None:
    xml = parsed(name)
    cases = [case for suite in xml for case in suite]
    assert xml.tests == len(cases)
    assert xml.failures == sum(bool(case.is_failure) for case in cases)
    assert xml.skipped == sum(bool(case.is_skipped) for case in cases)


def test_clean_has_no_failure() -> None:
    assert parsed("clean").failures == 0


def test_one_case_per_rule_and_layer() -> None:
    cases = [case for suite in parsed("many") for case in suite if case.classname == "gnnstab.GS301"]
    assert sorted(case.name for case in cases) == [
        f"GS301 attention-explosion at encoder.blocks.{i}.attention" for i in range(6)
    ]
    assert "head 2" in cases[0].result[0].text


def test_findings_below_the_limit_fail_nothing() -> None:
    assert parsed("one").failures == 1
    assert parsed("one", fail_on="error").failures == 0
    with pytest.raises(UsageError, match="unknown severity"):
        parsed("one", fail_on="fatal")


def test_unjudged_rules_are_skipped_with_the_reason() -> None:
    skipped = {case.name: case.result[0].message for suite in parsed("clean") for case in suite if case.is_skipped}
    assert skipped["GS604 never-updated-parameter"].startswith("not evaluable: a single batch")


def test_hostile_names_come_back_as_text() -> None:
    names = {case.name for suite in parsed("hostile") for case in suite if case.is_failure}
    assert "GS301 attention-explosion at a]]>b<!--c--><?d?>&amp;&#0;" in names
    assert all(character.isprintable() for name in names for character in name)


def test_several_targets_are_several_suites() -> None:
    xml = JUnitXml.fromstring(render([examples.clean(), examples.one_finding()], "junit").encode())
    assert [suite.name for suite in xml] == ["checkpoints/healthy_3agents/actor.pt", "checkpoints/agents7/actor.pt"]
