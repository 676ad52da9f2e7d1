"""The page: complete in itself, safe against hostile names, and tied together by its links."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources

import pytest

import examples
import gallery
from gnnstab.records import Cause, Coverage, Diagnosis, FixAdvice, Suppressed
from gnnstab.records.vocabulary import PRECISION_FP16_HEADROOM
from gnnstab.report import render, summary
from gnnstab.report.escape import visible
from gnnstab.report.evidence import Evidence
from gnnstab.report.faces import spoken
from gnnstab.report.html import embed
from gnnstab.report.summary import alike

DIAGNOSES: dict[str, Callable[[], Diagnosis]] = {
    "run": gallery.run,
    "deep": lambda: gallery.deep(40, 80),
    "all-nan": gallery.all_nan,
    "single-step": gallery.single_step,
    "clean": examples.clean,
    "one": examples.one_finding,
    "many": examples.many_findings,
    "nan": examples.nan_values,
    "hostile": examples.hostile_names,
}
VOID = {"meta", "link", "input", "br"}
TAG_NAMES = (
    "html head meta title link style script body main header footer section nav article div p span a ul ol li dl dt dd "
    "h1 h2 h3 h4 em b s small br kbd bdi code pre button form fieldset legend label input select option output figure "
    "details summary figcaption table caption thead tbody tr th td svg path circle rect line polygon text g"
)


class Page(HTMLParser):
    """What a browser makes of the page: its tags, its text, and the text of every element with an id."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.by_id: dict[str, str] = {}
        self.bare = {"script": "", "style": ""}
        self._open: list[tuple[str, str]] = []
        self.feed(source)
        self.close()
        assert not self._open, f"left open: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self._open.append((tag, dict(attrs).get("id") or ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"stray </{tag}>"
        name, _ = self._open.pop()
        assert name == tag, f"<{name}> closed by </{tag}>"

    def handle_data(self, data: str) -> None:
        inside = self._open[-1][0] if self._open else ""
        if inside in self.bare:
            self.bare[inside] += data
            return
        self.text += data
        for _, identity in self._open:
            if identity:
                self.by_id[identity] = self.by_id.get(identity, "") + data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(params=DIAGNOSES, scope="module")
def diagnosis(request: pytest.FixtureRequest) -> Diagnosis:
    return DIAGNOSES[request.param]()


@pytest.fixture(scope="module")
def page(diagnosis: Diagnosis) -> Page:
    return Page(render(diagnosis, "html"))


def item(source: str, pattern: str) -> str:
    """The source of the one finding whose start tag matches."""
    found = re.search(rf"<li id=\"finding-[^>]*{pattern}[^>]*>.*?</li>", source, re.DOTALL)
    assert found is not None, pattern
    return found[0]


def test_the_same_diagnosis_gives_the_same_bytes(diagnosis: Diagnosis) -> None:
    first = render(diagnosis, "html").encode("utf-8")
    assert first == render(diagnosis, "html").encode("utf-8")


def test_ids_are_used_once_and_every_link_leads_somewhere(page: Page) -> None:
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids)), [i for i in ids if ids.count(i) > 1][:5]
    for link in page.all("a"):
        assert link["href"].startswith("#"), link
        assert link["href"][1:] in ids, link
    for button in page.all("button"):
        assert "data-copy" not in button or button["data-copy"] in ids


def test_nothing_is_loaded_and_nothing_runs_but_the_one_script(page: Page) -> None:
    assert {tag for tag, _ in page.tags} <= set(TAG_NAMES.split())
    assert len(page.all("script")) == len(page.all("style")) == 1
    for tag, attributes in page.tags:
        loading = [name for name in attributes if name.startswith("on") or name in ("style", "src", "action", "srcdoc")]
        assert not loading, tag
    assert [a["href"] for a in page.all("link")] == ["data:,"]


def test_the_policy_allows_exactly_this_style_and_this_script(page: Page) -> None:
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    for kind in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(page.bare[kind].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy


def test_every_finding_stands_there_and_its_message_once_for_all_that_say_the_same(
    diagnosis: Diagnosis, page: Page
) -> None:
    items = [a["id"] for a in page.all("li") if a.get("id", "").startswith("finding-")]
    assert len(items) == len(diagnosis.findings)
    said = page.text.casefold()
    for group in alike(spoken(diagnosis)):
        for sentence in re.split(r"(?<=[.!?]) ", visible(group[0].message)[:400]):
            assert sentence.replace("`", "")[:60].casefold() in said.replace("`", "")


def test_hostile_names_are_text() -> None:
    page = Page(render(examples.hostile_names(), "html"))
    for name in examples.HOSTILE_NAMES:
        assert visible(name)[:25] in page.text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", page.text)


def test_a_finding_leads_to_the_figure_of_its_own_layer() -> None:
    diagnosis = gallery.run()
    source = render(diagnosis, "html")
    page = Page(source)
    finding = next(f for f in diagnosis.findings if f.code == "GS301" and f.head == 0)
    target = re.search(r'class="evidence" href="#([^"]+)"', item(source, finding.fingerprint))
    assert target is not None
    assert "Attention entropy per head" in page.by_id[target[1]]
    assert str(finding.layer) in page.by_id[target[1].removesuffix("-entropy")]


def test_a_finding_of_the_model_leads_to_its_number_or_to_the_coverage() -> None:
    found = item(render(examples.many_findings(), "html"), 'data-code="GS405"')
    assert re.search(r'class="evidence" href="#(run-number-degree.at_most_one_share|coverage)"', found)


def test_the_code_to_paste_is_the_change_itself() -> None:
    diagnosis = gallery.run()
    page = Page(render(diagnosis, "html"))
    shown = {text for identity, text in page.by_id.items() if re.fullmatch(r"fix-\d+-\d+-code", identity)}
    assert shown == {fix.change for cause in diagnosis.causes for fix in cause.fixes}


def test_fixes_of_the_root_cause_come_first_with_what_they_did() -> None:
    page = Page(render(gallery.run(), "html"))
    first = next(a["id"] for a in page.all("article") if a.get("class") == "fix")
    for words in ("confirmed on this model", "before 0.229", "after 0.71"):
        assert words in page.by_id[first]
    assert "not tested yet" in page.by_id["fixes"]
    assert "tried, no effect" in page.by_id["fixes"]


def test_a_fix_for_two_causes_stands_there_once() -> None:
    base = examples.one_finding()
    (fix,) = next(c.fixes for c in base.causes if c.status == "root-cause")
    causes = (*base.causes, Cause("precision", "contributing", "reason", (), (fix,)))
    page = Page(render(replace(base, causes=causes), "html"))
    assert len([a for a in page.all("article") if a.get("class") == "fix"]) == 1
    assert "for attention-explosion and precision" in page.by_id["fixes"]


def test_a_fix_that_was_seen_to_fail_is_never_the_first_thing_to_do() -> None:
    failed = FixAdvice("dropout", "x", "made-worse", 0.2, 0.1, "attention.entropy")
    base = examples.one_finding()
    causes = tuple(replace(c, fixes=(failed,)) if c.status == "root-cause" else c for c in base.causes)
    text = Page(render(replace(base, causes=causes), "html")).text
    assert "Show the change" not in text
    assert "tried, made it worse" in text


def seen(layers: int, of: int) -> Diagnosis:
    return replace(examples.clean(), coverage=Coverage(of, layers))


@pytest.mark.parametrize(
    ("make", "state", "headline"),
    [
        (gallery.run, "Unstable", "Root cause: sum-aggregation."),
        (examples.clean, "Stable", "No instability found."),
        (lambda: seen(3, of=5), "Nothing found", "No instability in what could be seen."),
        (lambda: seen(0, of=3), "Not evaluable", "Nothing could be judged."),
    ],
)
def test_the_verdict_never_calls_healthy_what_was_not_seen(
    make: Callable[[], Diagnosis], state: str, headline: str
) -> None:
    text = Page(render(make(), "html")).text
    assert state in text and headline in text


def test_all_causes_with_their_status(diagnosis: Diagnosis, page: Page) -> None:
    others = [cause for cause in diagnosis.causes if cause.status != "root-cause"]
    others.sort(key=lambda cause: summary.CAUSE_ORDER.index(cause.status))  # What contributes before what is merely so.
    for i, cause in enumerate([*diagnosis.root_causes(), *others]):
        assert cause.cause in page.by_id[f"cause-{i}"].casefold()
        assert cause.status.replace("-", " ") in page.by_id[f"cause-{i}"]


def test_many_root_causes_fit_the_headline() -> None:
    roots = tuple(Cause(f"cause-{i}", "root-cause", "reason") for i in range(5))
    text = Page(render(replace(gallery.run(), causes=roots), "html")).text
    assert "Root causes: cause-0, then cause-1, then cause-2, and 2 more." in text


def test_coverage_tells_blind_sites_assumptions_and_suppressed_findings() -> None:
    base = gallery.run()
    withheld = (Suppressed(base.findings[-1], "agreed with the team", "baseline"),)
    text = Page(render(replace(base, findings=base.findings[:-1], suppressed=withheld), "html")).by_id["coverage"]
    for words in ("4 of 4 observed", "Not an attention layer", "heads=3: read from the layer", "agreed with the team"):
        assert words in text


def test_non_finite_numbers_are_named() -> None:
    text = Page(render(examples.nan_values(), "html")).text
    assert "NaN" in text and "−∞" in text


def test_works_without_script(page: Page) -> None:
    """What only the script can serve is hidden until it runs; everything else is there from the start."""
    for tag, attributes in page.tags:
        script_only = "data-script" in attributes or attributes.get("id") == "nothing"
        assert ("hidden" in attributes) == script_only, (tag, attributes)


def test_labels_for_those_who_cannot_see(page: Page) -> None:
    assert all(len(a["aria-label"]) > 10 for a in page.all("svg") if a.get("role") == "img")
    assert {a["id"] for a in page.all("select")} <= {a["for"] for a in page.all("label") if "for" in a}
    assert page.all("html")[0]["lang"] == "en"
    headings = [tag for tag, _ in page.tags if re.fullmatch("h[1-4]", tag)]
    assert headings[0] == "h1"
    assert headings.count("h1") == 1


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("start", [":root {", ':root:not([data-theme="light"]) {', ':root[data-theme="dark"] {'])
def test_text_contrast_in_both_themes(start: str) -> None:
    css = resources.files("gnnstab.report").joinpath("templates/page.css").read_text(encoding="utf-8")
    colour = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", css.split(start, 1)[1].split("}", 1)[0]))
    pairs = [(text, "paper") for text in ("ink", "soft", "accent", "error", "warning", "info", "good")]
    pairs += [(tone, f"{tone}-wash") for tone in ("error", "warning", "info", "good")]
    for text, ground in pairs:
        low, high = sorted((luminance(colour[text]), luminance(colour[ground])))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground)


def test_a_large_report_stays_small_enough_to_open_at_once() -> None:
    page = render(gallery.deep(200, 500), "html")
    assert len(page.encode()) < 4_500_000
    assert page.count("<") < 140_000


def test_in_a_notebook_the_page_stands_in_a_frame_of_its_own() -> None:
    diagnosis = examples.hostile_names()
    assert diagnosis._repr_html_() == embed(diagnosis)
    frame = Page(embed(diagnosis))
    assert [tag for tag, _ in frame.tags] == ["iframe"]
    attributes = frame.tags[0][1]
    assert attributes["sandbox"] == "allow-scripts"
    assert Page(attributes["srcdoc"]).all("h1")


def test_a_cause_to_treat_is_a_card_with_its_evidence_and_its_change() -> None:
    page = Page(render(gallery.run(), "html"))
    first = page.by_id["cause-0"]
    assert "root cause" in first
    assert re.search(r"Evidence.*GS\d{3}.*limit", first)
    assert re.search(r"Change.*confirmed on this model", first)


def test_a_network_in_which_nothing_is_wrong_is_offered_no_fixes() -> None:
    calm = examples.clean()
    offered = tuple(replace(cause, fixes=(FixAdvice("dropout", "code"),)) for cause in calm.causes)
    page = Page(render(replace(calm, causes=offered), "html"))
    assert not [identity for identity in page.by_id if identity.startswith("fix")]
    assert not [a for a in page.all("a") if a.get("href", "").startswith("#fix")]


@pytest.mark.parametrize(("precision", "shaded"), [("fp32", False), ("bf16", False), ("fp16", True)])
def test_headroom_is_shaded_where_scores_are_in_half_precision(precision: str, shaded: bool) -> None:
    calm = examples.clean()
    evidence = Evidence(replace(calm, context={**calm.context, "precision": precision}))
    assert bool(evidence.limits(PRECISION_FP16_HEADROOM)) is shaded
