"""The table of rules: files, codes, docstrings, thresholds, causes."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gnnstab.rules
from gnnstab.records import FIVE_CAUSES, FURTHER_CAUSES, SEVERITIES
from gnnstab.rules import RULES, Rule
from gnnstab.rules._attribution import CODES_OF_CAUSE
from gnnstab.rules.explanation import LINKS
from gnnstab.rules.pages import HEADINGS, brief, page, section, summary
from gnnstab.rules.registry import CODE

FOLDER = Path(gnnstab.rules.__file__).parent
CODES = [rule.code for rule in RULES]

EVERY_RULE = pytest.mark.parametrize("rule", RULES, ids=CODES)


def test_every_file_is_in_the_table_and_the_reverse() -> None:
    files = {path.stem for path in FOLDER.glob("gs[0-9]*.py")}
    assert files == {rule.__module__.rpartition(".")[2] for rule in RULES}
    assert len(files) == len(RULES)


def test_the_table_is_in_order_and_codes_and_names_are_unique() -> None:
    assert sorted(CODES) == CODES
    assert len(set(CODES)) == len(CODES)
    assert len({rule.name for rule in RULES}) == len(RULES)


@EVERY_RULE
def test_code_and_name_match_the_file(rule: type[Rule]) -> None:
    assert CODE.fullmatch(rule.code)
    assert rule.__module__.rpartition(".")[2] == f"{rule.code.lower()}_{rule.name.replace('-', '_')}"


@EVERY_RULE
def test_metadata_is_of_the_vocabulary(rule: type[Rule]) -> None:
    assert rule.severity in SEVERITIES
    assert rule.confidence in ("high", "medium", "low")
    assert rule.cause in (*FIVE_CAUSES, *FURTHER_CAUSES) or (rule.cause == "" and rule.severity in ("info", "warning"))
    # GS607 sees that a run leaves and measures no cause, which it must not name then; GS609 names that of what was undone, GS705 that of
    # what a line was to do.
    if rule.cause == "" and not rule.code.startswith("GS9") and rule.code not in ("GS607", "GS609", "GS705"):
        assert rule.severity == "info"


@EVERY_RULE
def test_the_docstring_has_its_headings_in_order_and_a_reference(rule: type[Rule]) -> None:
    text = rule.__doc__ or ""
    assert tuple(re.findall(r"^    ## (.+)$", text, re.MULTILINE)) == HEADINGS
    assert all(len(section(rule.code, heading)) > 20 for heading in HEADINGS)
    assert summary(rule.code).endswith(".")


@EVERY_RULE
def test_every_threshold_has_a_unit_and_a_source(rule: type[Rule]) -> None:
    for field in dataclasses.fields(rule):
        assert field.metadata.get("unit"), field.name
        assert field.metadata.get("source"), field.name
        assert isinstance(field.default, (int, float))
        assert f"`{field.name}`" in page(rule.code)


@EVERY_RULE
def test_the_page_holds_the_docstring(rule: type[Rule]) -> None:
    text = page(rule.code.lower())
    opening = "\n".join(f"- **{label}.** {sentence}" for label, sentence in brief(rule.code))
    assert text.startswith(f"# {rule.code} {rule.name}\n\n{opening}\n")
    for heading in HEADINGS[2:]:
        assert text.count(f"\n## {heading}\n{section(rule.code, heading)}\n") == 1
    for (_, first), heading in zip(brief(rule.code)[1:], HEADINGS, strict=False):
        told = " ".join(section(rule.code, heading).split())
        assert told.startswith(first)
        assert told[len(first) :].strip() in " ".join(text.split())
    assert page(rule.name) == text


def test_every_cause_can_be_reached() -> None:
    """By a rule's own cause, or by one of those that a rule chooses among."""
    reached = {rule.cause for rule in RULES} | {
        "uninitialized-parameter",
        "non-finite-data",
        "learning-rate",
        "masking",
        "indistinguishable-nodes",
    }
    assert reached >= {*FIVE_CAUSES, *FURTHER_CAUSES}
    assert set(CODES_OF_CAUSE) == set(FURTHER_CAUSES)


def test_links_and_cause_tables_name_rules_that_exist() -> None:
    assert {code for link in LINKS for code in (link.symptom, link.explanation)} <= set(CODES)
    assert {code for codes in CODES_OF_CAUSE.values() for code in codes} <= set(CODES)


def test_rules_need_no_torch() -> None:
    script = "import sys, gnnstab.rules, gnnstab.rules.live, gnnstab.rules.pages, gnnstab.signals; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
