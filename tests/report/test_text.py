"""The terminal report: first line, order, widths, colours, hostile names."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from rich.cells import cell_len

import examples
from gnnstab.errors import UsageError
from gnnstab.records import Coverage, Suppressed
from gnnstab.report import render


def lines(diagnosis, **options) -> list[str]:
    return render(diagnosis, "text", **options).splitlines()


def test_the_first_line_is_the_verdict() -> None:
    assert lines(examples.one_finding())[0] == (
        "UNSTABLE  1 warning in 3 TransformerConv layers: root cause attention-explosion"
    )
    assert lines(examples.many_findings())[0] == (
        "UNSTABLE  9 errors, 14 warnings, 1 note in 6 layers: root cause sum-aggregation"
    )
    assert lines(examples.clean())[0] == ("STABLE  nothing to fix in 3 TransformerConv layers (4 rules not evaluable)")


def test_nothing_evaluable_is_not_called_stable() -> None:
    empty = replace(examples.clean(), coverage=Coverage(0, 0), layers=(), signals=())
    assert lines(empty)[0] == "NOT EVALUABLE  no attention layer found"
    assert lines(replace(examples.clean(), rules=()))[0].startswith("NOT EVALUABLE")


def test_layers_that_were_not_seen_stand_in_a_calm_verdict() -> None:
    blind = replace(examples.clean(), coverage=Coverage(5, 3))
    assert "2 layers not seen" in lines(blind, width=120)[0]


def test_where_the_first_nan_was_made_stands_at_the_top() -> None:
    top = " ".join(lines(examples.nan_values())[:5])
    assert "First non-finite value: gnn_base.gnn.gnn2.1, stage score, head 2, node 5, step 17, made here" in top


def test_root_causes_come_before_their_symptoms() -> None:
    text = render(examples.many_findings(), "text")
    assert text.index("GS401 sum-aggregation-growth") < text.index("GS301 attention-explosion")
    assert text.index("GS301 attention-explosion") < text.index("GS601 learning-rate-too-high")


def test_the_proven_fix_is_shown_with_its_code() -> None:
    text = render(examples.one_finding(), "text")
    assert "Fix query-scaling: confirmed, attention.entropy 0.229 → 0.583" in text
    assert "conv.lin_query.weight[0:16] *= 0.071" in text


def test_the_five_causes_stand_in_their_order() -> None:
    text = render(examples.clean(), "text")
    table = text[text.index("Causes") :]
    places = [
        table.index(f"\n  {cause} ")
        for cause in ("no-dropout", "beta-disabled", "no-residual", "attention-explosion", "unsuitable-init")
    ]
    assert places == sorted(places)


def test_a_fix_measured_to_fail_is_not_recommended() -> None:
    base = examples.one_finding()
    causes = [replace(c, fixes=tuple(replace(f, verdict="made-worse") for f in c.fixes)) for c in base.causes]
    text = render(replace(base, causes=tuple(causes)), "text")
    assert "No fix to recommend; measured to fail: query-scaling." in text


@pytest.mark.parametrize("name", examples.ALL)
@pytest.mark.parametrize("width", [40, 80, 120, 400])
def test_no_line_is_wider_than_the_terminal(name: str, width: int) -> None:
    widest = max(lines(examples.ALL[name](), width=width), key=cell_len)
    assert cell_len(widest) <= min(width, 120), widest


@pytest.mark.parametrize("name", examples.ALL)
def test_plain_text_has_no_control_characters(name: str) -> None:
    text = render(examples.ALL[name](), "text", verbose=True)
    assert all(c == "\n" or c.isprintable() for c in text)
    text.encode()


@pytest.mark.parametrize("name", examples.ALL)
@pytest.mark.parametrize("color", ["standard", "256", "truecolor"])
def test_colour_changes_nothing_but_colour(name: str, color: str) -> None:
    colored = render(examples.ALL[name](), "text", color=color)
    assert "\x1b[" in colored
    stripped = "\n".join(line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", colored).splitlines())
    assert "\x1b" not in stripped
    assert stripped == render(examples.ALL[name](), "text").rstrip("\n")


def test_unknown_colours_are_refused() -> None:
    with pytest.raises(UsageError, match="colour system"):
        render(examples.clean(), "text", color="pink")


def test_quiet_is_verdict_and_target() -> None:
    assert len(lines(examples.many_findings(), quiet=True)) == 2
    assert len(render([examples.clean(), examples.clean()], "text", quiet=True).splitlines()) == 4


def test_many_findings_stay_readable_and_verbose_shows_all() -> None:
    big = examples.many_findings(500, 200)
    assert len(lines(big)) < 200
    text = render(big, "text", verbose=True)
    for finding in big.findings:
        assert f"{finding.layer or 'the model'}" in text
    assert "--verbose shows all" not in text
    assert "--verbose shows all" in render(big, "text")


def test_layers_of_a_narrow_table_are_still_told_apart() -> None:
    text = render(examples.many_findings(), "text")
    assert "in encoder.blocks:" in text
    assert re.search(r"! +5\.attention", text)


def test_suppressed_findings_are_listed_with_their_reason() -> None:
    base = examples.one_finding()
    text = render(base.suppress([Suppressed(base.findings[0], "accepted by the team")]), "text")
    assert text.startswith("STABLE")
    assert "Suppressed: GS301 at gnn_base.gnn.gnn1: accepted by the team" in text


def test_hostile_names_show_as_text() -> None:
    text = render(examples.hostile_names(), "text", verbose=True)
    for shown in (
        "<img src=x onerror=alert(1)>",
        "[bold red]markup[/bold red]",
        r"\x1b[31mred",
        r"\u202eto",
        r"line\nbreak",
    ):
        assert shown in text
    assert "xxxxx…xxxxx" in text
    assert "x" * 200 not in text


def test_a_finding_about_all_heads_names_the_worst_one() -> None:
    assert "gnn_base.gnn.gnn1, worst head 0: attention.entropy 0.229 < 0.35" in render(
        examples.one_finding(), "text", width=120
    )


def test_further_causes_without_verdict_are_only_named() -> None:
    from gnnstab.records import Cause

    base = examples.clean()
    more = replace(base, causes=(*base.causes, Cause("learning-rate", "not-evaluable", "the optimizer is not known")))
    assert "Not evaluable either: learning-rate." in render(more, "text")
    assert "the optimizer is not known" in " ".join(render(more, "text", verbose=True, width=120).split())


def test_ipython_shows_the_text_and_not_the_fields() -> None:
    class Printer:
        shown = ""

        def text(self, text: str) -> None:
            self.shown += text

    printer, diagnosis = Printer(), examples.one_finding()
    diagnosis._repr_pretty_(printer, False)
    assert printer.shown == str(diagnosis).rstrip()


def test_in_a_notebook_text_is_returned_and_not_displayed_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("rich.jupyter.display", lambda *_: pytest.fail("displayed"))
    assert str(examples.one_finding()).startswith("UNSTABLE")
