"""The terminal report: first line, order, widths, colours, hostile names."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from rich.cells import cell_len

import examples
import gallery
from gnnstab.characters import counted
from gnnstab.errors import UsageError
from gnnstab.records import FIVE_CAUSES, Coverage, FixAdvice, Series, Signal, Suppressed
from gnnstab.report import escape, render


def lines(diagnosis, **options) -> list[str]:
    return render(diagnosis, "text", **options).splitlines()


ALL = {**examples.ALL, "run": gallery.run}


def code_of(diagnosis) -> set[str]:
    """The lines of code that a report may show; those are never wrapped."""
    changes = [fix.change for cause in diagnosis.causes for fix in cause.fixes]
    return {line.strip() for change in changes for line in escape.code(change).splitlines()}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("width", [80, 120])
def test_the_default_report_fits_a_screen(name: str, width: int) -> None:
    shown = lines(ALL[name](), width=width)
    assert 3 <= len(shown) <= 15
    assert len(set(shown)) == len(shown), "no line stands twice"


def test_the_verdict_comes_first_and_the_summary_last() -> None:
    shown = lines(examples.one_finding())
    assert shown[0] == "UNSTABLE  checkpoints/agents7/actor.pt (model, fp32)"
    assert shown[-1] == "1 warning in 3 layers: root cause attention-explosion; -v shows all"
    shown = lines(examples.many_findings())
    assert shown[0].startswith("UNSTABLE  runs/7agents/run.gnnstab")
    assert shown[-1] == "9 errors, 14 warnings, 1 note in 6 layers: root cause sum-aggregation"


def test_a_healthy_model_costs_three_lines() -> None:
    assert lines(examples.clean()) == [
        "STABLE  checkpoints/healthy_3agents/actor.pt (model, fp32)",
        "not run  5 of 40 checks (-v tells why)",
        "nothing to fix in 3 TransformerConv layers",
    ]


@pytest.mark.parametrize(
    ("last", "steps", "told"), [(1.38, 45, True), (1.2, 45, False), (1.38, 30, False), (1.6, 45, False)]
)
def test_a_calm_run_whose_loss_hardly_fell_says_so(last: float, steps: int, told: bool) -> None:
    losses = Series("loss", None, None, np.arange(steps), np.linspace(1.4, last, steps))
    shown = lines(replace(examples.clean(), series=(losses,)), width=80)
    assert any(line.startswith("loss     hardly fell: 1.4") for line in shown) is told
    assert ("takes Monitor(" in " ".join(shown)) is told
    assert shown[-1].startswith("nothing else to fix" if told else "nothing to fix")


def test_a_loss_that_stands_tells_what_was_tried() -> None:
    def told(last: float, *signals: Signal) -> str:
        losses = Series("loss", None, None, np.arange(50), np.linspace(1.4, last, 50))
        return " ".join(lines(replace(examples.clean(), series=(losses,), signals=signals), width=120))

    tried = Signal("optimizer.undone", 0.0)
    assert "hardly fell: 1.4" in told(1.38, tried) and "steps on copies do not show why" in told(1.38, tried)
    assert "did not fall: 1.4" in told(1.42) and "steps on copies do not show why" not in told(1.42)


def test_a_calm_report_names_the_rules_of_its_notes() -> None:
    note = replace(examples.many_findings().findings[0], severity="info")
    quiet = replace(examples.clean(), findings=(note, replace(note, code="GS601"), note))
    assert lines(quiet, width=120)[-1].endswith(f"; -v shows {note.code} GS601")
    assert all(len(line) <= 50 for line in lines(quiet, width=50)[-1:])


def test_a_further_cause_keeps_its_change_before_its_codes() -> None:
    base = examples.one_finding()
    roots = tuple(
        replace(base.causes[3], cause=name, codes=("GS301", "GS302", "GS303"), fixes=(FixAdvice("mean-aggregation-root", "x"),))
        for name in ("non-finite-data", "feature-scale", "attention-explosion")
    )  # fmt: skip
    told = [line for line in lines(replace(base, causes=roots), width=80) if line.startswith("also     root cause")]
    assert told and all(line.endswith(": change mean-aggregation-root") for line in told)
    assert all(len(line) <= 80 for line in told)


def test_a_passing_check_is_one_line_and_a_failing_one_is_the_report() -> None:
    assert lines(examples.clean(), brief=True) == [
        "STABLE  checkpoints/healthy_3agents/actor.pt: nothing to fix in 3 layers"
    ]
    assert lines(examples.one_finding(), brief=True) == lines(examples.one_finding())
    several = render([examples.clean(), examples.clean(), examples.one_finding()], "text", brief=True)
    assert [line[:8].strip() for line in several.splitlines()[:4]] == ["STABLE", "STABLE", "", "UNSTABLE"]


@pytest.mark.parametrize("verbose", [False, True])
def test_code_to_paste_is_complete_and_never_wrapped(verbose: bool) -> None:
    change = examples.many_findings().causes[5].fixes[0].change
    longest = max(change.splitlines(), key=len)
    assert len(longest) > 70
    shown = [line.strip() for line in lines(examples.many_findings(), width=80, verbose=verbose)]
    assert all(line.strip() in shown for line in change.splitlines())


def test_code_that_has_no_room_is_named_and_not_cut() -> None:
    text = render(gallery.run(), "text")
    assert "-v shows" in text and "lines of code" in text


def test_nothing_evaluable_is_not_called_stable() -> None:
    empty = replace(examples.clean(), coverage=Coverage(0, 0), layers=(), signals=())
    assert lines(empty)[0].startswith("NOT EVALUABLE")
    assert lines(empty)[-1].startswith("no attention was recognised")
    ran = replace(empty, target=replace(empty.target, kind="model"))
    assert " ".join(lines(ran)).endswith(
        "no attention was recognised; no softmax-like normalisation seen; -v shows all"
    )
    seen = replace(ran, context={**ran.context, "normalising": ("net.head",)})
    assert "softmax-like normalisation seen in net.head" in " ".join(lines(seen))
    assert lines(replace(examples.clean(), rules=()))[0].startswith("NOT EVALUABLE")


def test_a_calm_verdict_that_does_not_cover_everything_is_not_called_stable() -> None:
    base = examples.clean()
    weights = tuple(replace(signal, source="weights") for signal in base.signals)
    rules = tuple(replace(rule, status="suppressed", reason="not selected") for rule in base.rules[1:])
    hidden = Suppressed(examples.one_finding().findings[0], "known", "baseline")
    for diagnosis, told in (
        (replace(base, coverage=Coverage(5, 3)), "2 attention layers"),
        (replace(base, signals=weights), "your data and the training"),
        (replace(base, rules=(base.rules[0], *rules)), "not selected"),
        (replace(base, suppressed=(hidden,)), "1 finding, hidden by the baseline"),
    ):
        shown = lines(diagnosis)
        assert shown[0].startswith("NOTHING FOUND")
        assert told in shown[1]
        assert "STABLE" not in "".join(shown)


def test_where_the_first_nan_was_made_stands_at_the_top() -> None:
    top = " ".join(" ".join(lines(examples.nan_values())[:5]).split())
    assert "first non-finite value: gnn_base.gnn.gnn2.1, stage score, head 2, target node 5, step 17, made here" in top


def test_a_cause_does_not_say_again_where_the_first_nan_was() -> None:
    base = examples.nan_values()
    said = "`y[3]` holds NaN and came in at `sub`, in the loss; first non-finite value at step 17: the model, came in. Leave it out."
    causes = tuple(replace(cause, reason=said) if cause.status == "root-cause" else cause for cause in base.causes)
    shown = " ".join(" ".join(lines(replace(base, causes=causes))).split())
    assert shown.count("first non-finite value") == 1
    assert "`y[3]` holds NaN and came in at `sub`, in the loss. Leave it out." in shown


def test_root_causes_come_before_their_symptoms() -> None:
    text = render(examples.many_findings(), "text", verbose=True)
    assert text.index("GS401 sum-aggregation-growth") < text.index("GS301 attention-explosion")
    assert text.index("GS301 attention-explosion") < text.index("GS601 learning-rate-too-high")


def test_the_proven_fix_is_shown_with_its_code() -> None:
    text, whole = (render(examples.one_finding(), "text", verbose=verbose) for verbose in (False, True))
    assert "query-scaling (confirmed: attention.entropy 0.229 → 0.583)" in text
    assert "Fix query-scaling: confirmed, attention.entropy 0.229 → 0.583" in whole
    assert "conv.lin_query.weight[0:16] *= 0.071" in text


def test_the_five_causes_stand_in_their_order() -> None:
    text = render(examples.clean(), "text", verbose=True)
    table = text[text.index("Causes") :]
    places = [table.index(f"\n  {cause} ") for cause in FIVE_CAUSES]
    assert places == sorted(places)


def test_a_fix_measured_to_fail_is_not_recommended() -> None:
    base = examples.one_finding()
    causes = [replace(c, fixes=tuple(replace(f, verdict="made-worse") for f in c.fixes)) for c in base.causes]
    failed = replace(base, causes=tuple(causes))
    assert "No fix to recommend; measured to fail: query-scaling." in render(failed, "text", verbose=True)
    assert "none to recommend; measured to fail: query-scaling" in render(failed, "text")


@pytest.mark.parametrize("name", examples.ALL)
@pytest.mark.parametrize("width", [60, 80, 120, 400])
@pytest.mark.parametrize("verbose", [False, True])
def test_no_line_but_code_is_wider_than_the_terminal(name: str, width: int, verbose: bool) -> None:
    diagnosis = examples.ALL[name]()
    shown = [line for line in lines(diagnosis, width=width, verbose=verbose) if line.strip() not in code_of(diagnosis)]
    widest = max(shown, key=cell_len)
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


def test_quiet_is_one_line() -> None:
    assert lines(examples.many_findings(), quiet=True, width=120) == [
        "UNSTABLE  runs/7agents/run.gnnstab: 9 errors, 14 warnings, 1 note in 6 layers: root cause sum-aggregation"
    ]
    assert len(render([examples.clean(), examples.clean()], "text", quiet=True).splitlines()) == 2


def test_verbose_shows_every_finding() -> None:
    big = examples.many_findings(500, 200)
    assert len(lines(big)) <= 15
    text = render(big, "text", verbose=True)
    for finding in big.findings:
        assert f"{finding.layer or 'the model'}" in text


def test_layers_of_a_narrow_table_are_still_told_apart() -> None:
    text = render(examples.many_findings(), "text", verbose=True)
    assert "in encoder.blocks:" in text
    assert re.search(r"! +5\.attention", text)


def test_suppressed_findings_are_listed_with_their_reason() -> None:
    base = examples.one_finding()
    text = render(base.suppress([Suppressed(base.findings[0], "accepted by the team")]), "text", verbose=True)
    assert text.startswith("NOTHING FOUND")
    assert "Suppressed: GS301 at gnn_base.gnn.gnn1: accepted by the team" in text


def test_hostile_names_show_as_text() -> None:
    text = render(examples.hostile_names(), "text", verbose=True)
    markup = ("<img src=x onerror=alert(1)>", "[bold red]markup[/bold red]")
    for shown in (*markup, r"\x1b[31mred", r"\u202eto", r"line\nbreak", "xxxxx…xxxxx"):
        assert shown in text
    assert "x" * 200 not in text


def test_a_finding_about_all_heads_names_the_worst_one() -> None:
    shown = render(examples.one_finding(), "text", width=120, verbose=True)
    assert "gnn_base.gnn.gnn1, all heads (worst head 0: 0.206): attention.entropy 0.229 < 0.35" in shown


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


@pytest.mark.parametrize("verdict", ["inconclusive", "confirmed"])
def test_a_trial_that_has_decided_nothing_says_why(verdict: str) -> None:
    diagnosis = examples.one_finding()
    why = "the short training may be worse: more seeds or steps would tell (at learning rate 0.1)"
    first = diagnosis.root_causes()[0]
    tried = replace(first.fixes[0], verdict=verdict, note=f"{why}. Compared: the current weights. Trained 150 steps.")
    told = " ".join(" ".join(lines(replace(diagnosis, causes=(replace(first, fixes=(tried,)),)))).split())
    assert (why in told) is (verdict == "inconclusive")
    assert told.count("at learning rate 0.1") == 1


@pytest.mark.parametrize("parts", range(1, 40, 2))
def test_a_reason_of_any_length_leaves_the_change_its_room(parts: int) -> None:
    diagnosis = gallery.run()
    first = diagnosis.root_causes()[0]
    note = "not tested: gnnstab verify --fix query-scaling, or diagnose --verify"
    change = FixAdvice("query-scaling", "a = 1\nb = 2\nc = 3", note=note)
    long = replace(first, reason="; ".join(["it was measured"] * parts), fixes=(change,))
    shown = lines(replace(diagnosis, causes=(long,)))
    assert "         c = 3" in shown
    assert len(shown) <= 15


def test_no_number_stands_without_its_signal() -> None:
    """Beside a cause, one line for each rule: what was measured, its limit and the unit, or no number at all."""
    shown = [line for line in lines(gallery.run(), width=80) if re.match(r"(also|  ) +(error|warning) ", line)]
    assert shown
    for line in shown:
        assert not re.search(r"[<>=] ?[\d.]", line) or re.search(r": [a-z][\w.]* (inf|[\d.e+-]+) [<>=] ", line), line


@pytest.mark.parametrize(
    ("amount", "noun", "said"),
    [
        (1, "entry", "1 entry leads"),
        (2, "entry", "2 entries lead"),
        (0, "key", "0 keys lead"),
        (1.0, "row", "1 row leads"),
    ],
)
def test_one_is_singular(amount: float, noun: str, said: str) -> None:
    assert counted(amount, noun, "leads", "lead") == said


@pytest.mark.parametrize(
    ("how", "said"), [("tried", "seen in steps on a copy"), ("inferred", "fits the numbers, not tried")]
)
def test_what_was_tried_in_steps_is_not_called_untried(how: str, said: str) -> None:
    diagnosis = examples.one_finding()
    cause = replace(diagnosis.root_causes()[0], how=how)
    assert said in render(replace(diagnosis, causes=(cause,)), "text")


@pytest.mark.parametrize(("changed", "said"), [({"lr": 0.01}, "0.01 in place of 1"), ({}, "1")])
def test_a_changed_rate_is_named_beside_the_one_that_it_replaces(changed: dict[str, float], said: str) -> None:
    from gnnstab.verification.training import TrainingSettings

    diagnosis = examples.one_finding()
    note = f"the loss is lower ({TrainingSettings(lr=1.0).rate_with(changed)})"
    advice = FixAdvice("lower-lr", "", "confirmed", note=note, signal="loss", before=2.0, after=1.0)
    cause = replace(diagnosis.root_causes()[0], fixes=(advice,))
    shown = " ".join(render(replace(diagnosis, causes=(cause,)), "text").split())
    assert f"lower-lr (confirmed at learning rate {said}: loss 2 → 1)" in shown


@pytest.mark.parametrize(
    ("ends", "told"),
    [
        ((1.0,), ""),
        ((6.0,), "score.max_abs of a0: worst 60 at step 3, last 6 at step 59"),
        ((1.0, 6.0, 6.0), "; 1 more number was far worse than at the end (-v)"),
    ],
)
def test_what_was_worse_during_a_run_stands_behind_the_causes_unless_it_came_back_to_health(
    ends: tuple[float, ...], told: str
) -> None:
    base = examples.one_finding()
    went = tuple(
        Signal("score.max_abs", end, f"a{n}", detail={"worst": 60.0, "worst_step": 3, "last": end, "last_step": 59})
        for n, end in enumerate(ends)
    )
    rows = lines(replace(base, signals=(*base.signals, *went)))
    places = [n for n, row in enumerate(rows) if row.startswith("run ")]
    assert bool(places) == bool(told)
    assert told in " ".join(" ".join(rows).split())
    assert all(n > next(m for m, row in enumerate(rows) if row.startswith("change ")) for n in places)
    calm = lines(replace(examples.clean(), signals=went))
    assert any(row.startswith("run ") for row in calm), "without a cause it is told all the same"


@pytest.mark.parametrize(("worst", "told"), [(0.34, False), (0.6, True)])
def test_a_share_that_was_never_near_its_limit_is_none_of_a_runs_story(worst: float, told: bool) -> None:
    """One of three channels that nothing opened in the first step; the limit of GS701 is 0.9."""
    detail = {"worst": worst, "worst_step": 0, "last": 0.0, "last_step": 59}
    went = (Signal("channels.dead_share", 0.0, "a0", detail=detail),)
    assert any(row.startswith("run ") for row in lines(replace(examples.clean(), signals=went))) == told


def test_what_contributes_is_called_so_in_the_short_report_the_long_one_and_the_last_line() -> None:
    from gnnstab.report.topic_pages import topic_page

    base = examples.one_finding()
    cause = replace(base.root_causes()[0], status="contributing", how="undone")
    diagnosis = replace(base, causes=(cause,))
    rows = lines(diagnosis)
    assert any(row.startswith(f"cause    contributing {cause.cause}") for row in rows), rows
    assert f"contributing {cause.cause}" in rows[-1], rows
    assert "contributing" in render(diagnosis, "text", verbose=True)
    for word in ("cause", "contributing", "suspect", "cause not established", "root cause"):
        assert topic_page(word)
