"""Every report in plain English: no word twice, no wrong plural, no half of a name, no sentence said again."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser

import pytest

import examples
import gallery
from gnnstab.records import Diagnosis
from gnnstab.report import render

DIAGNOSES: dict[str, Callable[[], Diagnosis]] = {
    **{name: make for name, make in examples.ALL.items() if name != "hostile"},
    "run": gallery.run,
    "deep": lambda: gallery.deep(40, 80),
}
FACES = {
    "short": lambda d: render(d, "text"),
    "narrow": lambda d: render(d, "text", width=60),
    "one line": lambda d: render(d, "text", quiet=True),
    "verbose": lambda d: render(d, "text", width=400, verbose=True),
    "markdown": lambda d: render(d, "markdown"),
    "github": lambda d: render(d, "github"),
    "html": lambda d: Text(render(d, "html")).words,
}
PLURALS = (
    *("errors", "warnings", "notes", "layers", "heads", "rules", "findings", "steps", "seeds"),
    *("parameters", "tensors", "pairs", "edges", "nodes", "causes", "ones", "rows", "lines"),
)
FAULTS = {
    "a word twice": r"\b([a-z]{2,} [a-z]{2,}|[a-z]{3,}) \1\b",
    "a wrong plural": rf"(?<![\d.,^#-])\b1 (?:more |later )?(?:{'|'.join(PLURALS)})\b",
    "half of a name": r"…\w",
    "versus": r"\bvs\b",
    "a negative share": r"-\d+ ?% of",
}


class Text(HTMLParser):
    """The text of a page, each element in a line of its own, without script, style and code; paragraphs also apart."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.words, self.paragraphs, self._skip, self._inside = "", "", 0, False
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._skip += tag in ("script", "style", "pre")
        self._inside = self._inside or (tag == "p" and dict(attrs).get("class") != "facts")
        self.words += "" if tag in ("a", "code", "b", "em", "small", "bdi") else "\n"

    def handle_endtag(self, tag: str) -> None:
        self._skip -= tag in ("script", "style", "pre")
        if tag == "p":
            self._inside, self.paragraphs = False, self.paragraphs + "\n"
        self.words += "" if tag in ("a", "code", "b", "em", "small", "bdi") else "\n"

    def handle_data(self, data: str) -> None:
        text = "" if self._skip else re.sub(r"\s+", " ", data)
        self.words += text
        self.paragraphs += text if self._inside else ""


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("name", DIAGNOSES)
def test_plain_english(name: str, face: str) -> None:
    text = FACES[face](DIAGNOSES[name]())
    for what, pattern in FAULTS.items():
        found = re.search(pattern, text)
        assert found is None, f"{what}: {text[max(found.start() - 60, 0) : found.end() + 60]!r}"


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("a word twice", "mean attention entropy attention entropy over targets"),
        ("a wrong plural", "1 later ones follow"),
        ("a wrong plural", "(1 seeds)"),
        ("half of a name", "root …um-aggregation of attention-…d-by-input"),
        ("versus", "nan vs 0"),
        ("a negative share", "covers -4% of the way"),
    ],
)
def test_the_faults_are_found(fault: str, text: str) -> None:
    assert re.search(FAULTS[fault], text)


def sentences(text: str) -> list[str]:
    """Sentences of seven words and more; what is code or a row of numbers is none."""
    parts = re.split(r"(?<=[.!?]) |\n+|<br>| \| ", text)
    found = [" ".join(part.split()).strip(" .*|") for part in parts]
    return [part.casefold() for part in found if len(re.findall(r"[A-Za-z]{2,}", part)) >= 6 and part.count(" ") >= 6]


@pytest.mark.parametrize("face", ["verbose", "markdown", "html"])
@pytest.mark.parametrize("name", DIAGNOSES)
def test_no_sentence_is_said_twice(name: str, face: str) -> None:
    diagnosis = DIAGNOSES[name]()
    text = Text(render(diagnosis, "html")).paragraphs if face == "html" else FACES[face](diagnosis)
    twice = [said for said, times in Counter(sentences(text)).items() if times > 1]
    assert twice == []


@pytest.mark.parametrize("name", DIAGNOSES)
def test_a_page_shows_code_as_code(name: str) -> None:
    assert "`" not in Text(render(DIAGNOSES[name](), "html")).words


@pytest.mark.parametrize("name", DIAGNOSES)
@pytest.mark.parametrize("width", [80, 120])
def test_every_root_cause_that_is_counted_is_shown(name: str, width: int) -> None:
    diagnosis = DIAGNOSES[name]()
    text = render(diagnosis, "text", width=width)
    for cause in diagnosis.root_causes():
        assert re.search(rf"^(?:cause|also) .*\b{cause.cause}\b", text, re.MULTILINE), cause.cause
