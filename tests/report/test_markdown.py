"""Markdown, rendered by a CommonMark parser: names must come out as text."""

from __future__ import annotations

import re

import pytest
from markdown_it import MarkdownIt

import examples
from gnnstab.report import render, summary
from gnnstab.report._markdown import MOST_ROWS, span, text
from gnnstab.report.escape import sentence


def tokens(source: str):
    return MarkdownIt("commonmark").enable("table").parse(source)


@pytest.mark.parametrize("name", examples.ALL)
def test_nothing_but_line_breaks_is_html_and_nothing_is_a_link(name: str) -> None:
    for token in tokens(render(examples.ALL[name](), "markdown")):
        assert token.type != "html_block"
        for child in token.children or []:
            assert child.type not in ("link_open", "image")
            assert child.type != "html_inline" or child.content == "<br>"


@pytest.mark.parametrize("name", examples.ALL)
def test_every_table_row_has_as_many_cells_as_its_head(name: str) -> None:
    kinds = [token.type for token in tokens(render(examples.ALL[name](), "markdown"))]
    rows = " ".join(kinds).split("tr_close")[:-1]
    widths = [row.count("th_open") + row.count("td_open") for row in rows]
    assert set(widths) <= {4, 5}
    groups = len(summary.alike(examples.ALL[name]()))
    assert widths.count(5) == (min(groups, MOST_ROWS) + 1 if groups else 0)


@pytest.mark.parametrize("value", [*examples.HOSTILE_NAMES[:-1], "@team", "www.example.org", "~~x~~", "a  \nb", "1. x"])
def test_text_comes_out_as_written(value: str) -> None:
    inline = tokens(f"x {text(value)} x")[1]
    shown = "".join(child.content for child in inline.children)
    assert shown == re.sub(r"`([^`|]+)`", r"\1", f"x {sentence(value)} x"), "code in backquotes is code"


@pytest.mark.parametrize("value", ["a`b``c", "`", "``", "plain", "a|b"])
def test_code_spans_hold_their_content(value: str) -> None:
    source = f"| h |\n| --- |\n| {span(value, 80)} |\n"
    codes = [child for token in tokens(source) for child in token.children or [] if child.type == "code_inline"]
    assert [code.content for code in codes] == [value]


@pytest.mark.parametrize("make", [*examples.ALL.values(), lambda: examples.many_findings(500, 200)])
def test_a_report_is_at_most_2_000_tokens(make) -> None:
    source = render(make(), "markdown")
    assert len(source) <= 4 * 2000, "four characters to a token"


def test_code_in_a_sentence_is_code() -> None:
    said = "`where` gave 0 for 1 of 16 entries, line 23 of train_c2.py: `return -torch.log(q).mean()`"
    assert text(said) == said.replace("train_c2", "train\\_c2")
    assert text("an odd `") == "an odd \\`"
    assert text("a bar in `a|b`") == "a bar in \\`a\\|b\\`", "a bar ends a cell of a table, also in code"
