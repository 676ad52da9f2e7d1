"""Whatever text of a stranger is shown, and wherever: no terminal obeys it, and no reader is misled by its direction."""

from __future__ import annotations

import dataclasses
import io
import re
import unicodedata
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pytest
from gnnstab.cli import output
from rich.console import Console

import examples
from gnnstab.compare import compare
from gnnstab.compare import render as render_comparison
from gnnstab.errors import printable
from gnnstab.records import Diagnosis
from gnnstab.report import FORMATS, escape, render
from gnnstab.verification.wording import as_json
from gnnstab.watch._frame import frame
from gnnstab.watch._snapshot import Snapshot

POISON = "\x1b[2J\x9b31m\x07\x08\u202e\u2066\u200b\u2028\x00\u3164\ufe0f\u034f\U000e0041"

OWN = {
    *(
        "severity",
        "status",
        "verdict",
        "confidence",
        "how",
        "source",
        "signal",
        "code",
        "codes",
        "cause",
        "explained_by",
    ),
    *("Target.kind", "Finding.name", "Finding.unit", "Signal.name", "Series.name"),
}
"""Fields that hold words of gnnstab's own tables, which no file can set."""

_STYLE = re.compile(r"\x1b\[[0-9;]*m")
_LINK = re.compile(r"\x1b\]8;[^\x1b\x07]*\x1b\\")


def poison(value: Any) -> Any:
    """The same records with hostile characters behind every text that they admit."""
    if isinstance(value, str):
        return value + POISON
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            if field.init and not OWN & {field.name, f"{type(value).__name__}.{field.name}"}:
                with suppress(ValueError):  # The records refuse names that are not in their vocabulary.
                    value = dataclasses.replace(value, **{field.name: poison(getattr(value, field.name))})
        return value
    if isinstance(value, Mapping):
        return {**{key: poison(item) for key, item in value.items()}, POISON: POISON}
    if isinstance(value, (tuple, list)):
        return type(value)(map(poison, value))
    return value


def hidden(text: str) -> set[str]:
    """The characters in it that are not seen."""
    return {
        f"{ord(c):#x}"
        for c in text.replace("⚠️", "").replace("ℹ️", "")  # Marks of gnnstab's own, in Markdown.
        if c not in "\n\t"
        and (unicodedata.category(c) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"} or c in POISON[-4:-1])
    }


def fields(make: Any, fields: tuple[str, ...]) -> Diagnosis:
    """A diagnosis with every text of these fields poisoned; the other fields keep their codes and names."""
    diagnosis = make()
    return dataclasses.replace(diagnosis, **{name: poison(getattr(diagnosis, name)) for name in fields})


WHOLE = tuple(field.name for field in dataclasses.fields(Diagnosis) if field.init)
MAKERS = {"many": examples.many_findings, "hostile": examples.hostile_names, "nan": examples.nan_values}


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("format", FORMATS)
def test_no_format_shows_it(format: str, maker: str) -> None:
    for shown in [*((name,) for name in WHOLE), WHOLE]:
        text = render(fields(MAKERS[maker], shown), format)
        lines = [line for line in text.splitlines() if hidden(line)]
        assert not lines, (shown, lines[:5])


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("options", [{"color": "truecolor", "verbose": True}, {"quiet": True}, {"color": "standard"}])
def test_the_text_has_no_sequences_but_its_own(options: dict[str, Any], maker: str) -> None:
    text = render(fields(MAKERS[maker], WHOLE), "text", width=120, **options)
    assert hidden(_LINK.sub("", _STYLE.sub("", text))) == set()


@pytest.mark.parametrize("format", ["text", "json"])
def test_comparisons(format: str) -> None:
    before, after = (fields(make, WHOLE) for make in (examples.nan_values, examples.many_findings))
    for pair in ((before, before), (after, after)):
        assert hidden(render_comparison(compare(*pair), format, verbose=True)) == set()


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("width", [40, 80, 250])
def test_watch(maker: str, width: int) -> None:
    for shown in [*((name,) for name in WHOLE), WHOLE]:
        snapshot = Snapshot(fields(MAKERS[maker], shown), POISON, 3, 1.0, 3, None, None, True, (f"a note {POISON}",))
        for ascii_only in (False, True):
            stream = io.StringIO()
            Console(file=stream, width=width, height=80, color_system=None).print(
                frame(snapshot, width, 80, ascii_only=ascii_only)
            )
            assert hidden(stream.getvalue()) == set(), shown


def test_json_keeps_what_it_hides() -> None:
    """An escape of JSON is the same text to whoever reads it with a program."""
    import json

    diagnosis = fields(examples.one_finding, WHOLE)
    assert json.loads(diagnosis.to_json())["target"]["path"] == diagnosis.target.path
    assert hidden(as_json({"a": POISON})) == set()
    assert json.loads(as_json({"a": POISON})) == {"a": POISON}


def test_visible_shows_what_has_no_shape() -> None:
    assert hidden(escape.visible(POISON)) == set()
    assert hidden(escape.visible(POISON, newlines=True)) == set()


def test_whatever_the_command_line_prints(capsys: pytest.CaptureFixture[str]) -> None:
    """The last of two defences: a command that forgets to escape shows escapes nevertheless."""
    output.show(f"\x1b[31mred\x1b[0m {POISON}\n")
    output.complain(POISON)
    shown = capsys.readouterr()
    assert shown.out.startswith("\x1b[31mred\x1b[0m ")
    assert hidden(_STYLE.sub("", shown.out)) == set()
    assert hidden(shown.err) == set()


def test_messages_of_errors() -> None:
    assert hidden(printable(POISON)) == set()
