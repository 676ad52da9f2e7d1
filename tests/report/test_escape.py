"""Escaping, by example and by property."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnnstab.report import escape

ANY_TEXT = st.text(alphabet=st.characters(exclude_categories=()))


@given(ANY_TEXT)
def test_visible_text_is_printable_and_can_be_written(text: str) -> None:
    shown = escape.visible(text)
    assert shown.isprintable() or any(c.isspace() for c in shown)
    assert not any(c in shown for c in "\n\r\t\x1b\u202e\u2028")
    shown.encode()


@given(ANY_TEXT)
def test_no_line_of_visible_text_is_a_command_of_a_build_server(text: str) -> None:
    for word in escape.visible(text).split(" "):
        assert not word.startswith("::")
    assert "##[" not in escape.visible(text)


@given(ANY_TEXT)
def test_visible_keeps_the_lines_of_code(text: str) -> None:
    shown = escape.visible(text, newlines=True)
    assert shown.count("\n") == text.count("\n")


@given(st.text(max_size=200), st.integers(3, 80))
def test_shortened_text_fits_and_keeps_both_ends(text: str, longest: int) -> None:
    short = escape.shorten(text, longest)
    assert len(short) <= longest
    if len(text) > longest:
        assert short[0] in (text[0], "…")
        assert short[-1] == text[-1]


def test_printable_text_stays_as_it_is() -> None:
    text = "Δ entropy ≤ 0.35 · ‖M‖ 層 — ünïcödé [a] <b> {c}"
    assert escape.visible(text) == text


@pytest.mark.parametrize(
    ("names", "path", "short"),
    [
        (["a.b.c", "a.b.d"], "", ["a.b.c", "a.b.d"]),
        (
            ["net.encoder.blocks.0.attention", "net.encoder.blocks.1.attention"],
            "net.encoder.blocks",
            ["0.attention", "1.attention"],
        ),
        (["one.very.long.name.of.a.single.layer"], "", ["one.very.long….layer"]),
        (["same.same.same.same.same", "same.same.same.same.same"], "same.same.same.same", ["same", "same"]),
    ],
)
def test_apart(names: list[str], path: str, short: list[str]) -> None:
    assert escape.apart(names, 20) == (path, short)


def test_endless_code_is_cut() -> None:
    lines = escape.code("x = 1\n" * 100).splitlines()
    assert len(lines) == 61
    assert lines[-1] == "… 40 more lines"
