"""The report for test dashboards: JUnit XML with one test case per rule and layer.

A rule that fired fails the case of each layer it names; a rule that passed is one passed case; a rule without a
verdict is a skipped case with its reason. A finding below ``fail_on`` stands in the case's output and fails nothing. A file that could not be read,
and a target of which nothing could be judged, are cases with an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree as ET

from gnnstab.records import SEVERITIES, Diagnosis, Finding, RuleStatus
from gnnstab.report import _rulebook as rulebook
from gnnstab.report import escape, summary
from gnnstab.report.numbers import measured

LONGEST_NAME = 200


def render_many(diagnoses: Sequence[Diagnosis], *, fail_on: str = "warning") -> str:
    """One test suite per target; findings at or above ``fail_on`` are failures."""
    root = ET.Element("testsuites", name="gnnstab")
    for diagnosis in diagnoses:
        diagnosis.at_least(fail_on)  # refuses an unknown severity
        root.append(_suite(diagnosis, fail_on))
    for key in ("tests", "failures", "errors", "skipped"):
        root.set(key, str(sum(int(suite.get(key, "0")) for suite in root)))
    ET.indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _suite(diagnosis: Diagnosis, fail_on: str) -> ET.Element:
    suite = ET.Element("testsuite", name=_text(diagnosis.target.path))
    properties = ET.SubElement(suite, "properties")
    for name, value in _facts(diagnosis):
        ET.SubElement(properties, "property", name=name, value=_text(value, 1000))
    by_code: dict[str, list[Finding]] = {}
    for finding in summary.in_reading_order(diagnosis):
        by_code.setdefault(finding.code, []).append(finding)
    for code in sorted({*(rule.code for rule in diagnosis.rules), *by_code}):
        found = by_code.get(code, [])
        if not found:
            suite.append(_case_without_finding(code, next((r for r in diagnosis.rules if r.code == code), None)))
        for layer in dict.fromkeys(finding.layer for finding in found):
            suite.append(_case(diagnosis, code, layer, [f for f in found if f.layer == layer], fail_on))
    for why in summary.failures(diagnosis):
        case = ET.SubElement(suite, "testcase", classname="gnnstab", name="could be judged", time="0")
        ET.SubElement(case, "error", message=_text(why, 1000))
    cases = suite.findall("testcase")
    suite.set("tests", str(len(cases)))
    suite.set("failures", str(sum(case.find("failure") is not None for case in cases)))
    suite.set("errors", str(sum(case.find("error") is not None for case in cases)))
    suite.set("skipped", str(sum(case.find("skipped") is not None for case in cases)))
    return suite


def _facts(diagnosis: Diagnosis) -> list[tuple[str, str]]:
    word, rest = summary.verdict(diagnosis)
    return [
        ("verdict", f"{word}: {rest}"),
        ("kind", diagnosis.target.kind),
        ("layers_observed", str(diagnosis.coverage.layers_observed)),
        ("layers_expected", str(diagnosis.coverage.layers_expected)),
        *(("assumption", assumption) for assumption in diagnosis.coverage.assumptions),
    ]


def _case(diagnosis: Diagnosis, code: str, layer: str | None, found: Sequence[Finding], fail_on: str) -> ET.Element:
    place = "the model" if layer is None else layer
    case = _element(code, found[0].name, f" at {escape.name(place, LONGEST_NAME)}")
    failing = [f for f in found if SEVERITIES.index(f.severity) >= SEVERITIES.index(fail_on)]
    if failing:
        failure = ET.SubElement(case, "failure", type=failing[0].severity, message=_text(failing[0].message, 1000))
        failure.text = "\n".join(_line(diagnosis, finding) for finding in failing)
    calm = [f for f in found if f not in failing]
    if calm:
        ET.SubElement(case, "system-out").text = "\n".join(_line(diagnosis, finding) for finding in calm)
    return case


def _case_without_finding(code: str, rule: RuleStatus | None) -> ET.Element:
    case = _element(code, rulebook.name(code), "")
    if rule is not None and rule.status not in ("passed", "fired"):
        reason = ": ".join(filter(None, (summary.verdict_words(rule.status), rule.reason)))
        ET.SubElement(case, "skipped", message=_text(reason, 1000))
    return case


def _element(code: str, name: str, place: str) -> ET.Element:
    return ET.Element(
        "testcase", classname=f"gnnstab.{_text(code)}", name=_text(f"{code} {name}{place}".strip(), 400), time="0"
    )


def _line(diagnosis: Diagnosis, finding: Finding) -> str:
    return _text(
        f"{finding.severity}: {summary.where(finding, diagnosis)}: {measured(finding)}. {escape.sentence(finding.message)}",
        3000,
    )


def _text(text: str, longest: int = LONGEST_NAME) -> str:
    """Characters that XML 1.0 forbids are shown as escapes; the writer escapes the markup."""
    return escape.name(text, longest)
