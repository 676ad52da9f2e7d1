"""Figures: drawn for one layer and for 200, for NaN and for a single step, with no text cut off or overlapping."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

import examples
import gallery
from gnnstab.errors import NothingEvaluable, UsageError
from gnnstab.records import Coverage, Diagnosis, Target
from gnnstab.report import figures
from gnnstab.report.evidence import Evidence, Limit
from gnnstab.report.figures._canvas import drawable
from gnnstab.report.figures._change import crossing
from gnnstab.report.figures._writing import figures as all_figures
from gnnstab.report.figures._writing import write_figures
from gnnstab.report.page_text import short
from gnnstab.verification.scaling import Point, Scaling, evaluate

DIAGNOSES: dict[str, Callable[[], Diagnosis]] = {
    "run": gallery.run,
    "200-layers": lambda: gallery.deep(200, 20),
    "all-nan": gallery.all_nan,
    "one-layer-one-step": gallery.single_step,
    "hostile": examples.hostile_names,
}
WARN = Limit(100.0, "warning", "above")


def scaling() -> Figure:
    curves = {"as it is": [2.8, 9, 31, 120, 480], "mean": [0.2, 0.25, 0.22, 0.3, 0.27]}
    return figures.scaling_curve([5, 9, 17, 33, 65], curves, signal="score.std", limits=[WARN])


def drawn_texts(figure: Figure) -> list[Text]:
    """The texts that show: tick labels beyond the ends of their axis exist but are not drawn."""
    unseen: set[int] = set()
    for ax in [*figure.axes, *(child for parent in figure.axes for child in parent.child_axes)]:
        for axis, limits, i in ((ax.xaxis, ax.get_xlim(), 0), (ax.yaxis, ax.get_ylim(), 1)):
            low, high = sorted(limits)
            labels = axis.get_ticklabels(which="both")
            unseen |= {id(t) for t in labels if not low <= t.get_position()[i] <= high}
    texts = figure.findobj(Text)
    return [t for t in texts if t.get_visible() and t.get_text().strip() and id(t) not in unseen]


def complaints(figure: Figure) -> list[str]:
    """Texts that leave the figure, pairs of texts that lie on each other, and axes that do not say what they show."""
    figure.canvas.draw()
    width, height = figure.canvas.get_width_height()
    boxes = [(text, text.get_window_extent()) for text in drawn_texts(figure)]
    found = [
        f"cut off: {text.get_text()!r}"
        for text, box in boxes
        if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1
    ]
    for (a, one), (b, two) in itertools.combinations(boxes, 2):
        if a.get_rotation() % 90 or b.get_rotation() % 90:
            continue  # a slanted text's box is larger than the text
        across = min(one.x1, two.x1) - max(one.x0, two.x0)
        down = min(one.y1, two.y1) - max(one.y0, two.y0)
        if across > 2 and down > 2:
            found.append(f"overlap: {a.get_text()!r} and {b.get_text()!r}")
    found += [f"no title: axes {i}" for i, ax in enumerate(figure.axes) if not ax.get_title(loc="left")]
    labels = [text for ax in figure.axes for text in (ax.get_xlabel(), ax.get_ylabel())]
    return found if any(labels) else [*found, "no label: any axis"]


@pytest.mark.parametrize("name", DIAGNOSES)
def test_nothing_is_cut_off_overlapping_or_unlabelled(name: str) -> None:
    drawn = dict(itertools.islice(all_figures(DIAGNOSES[name]()), 7 if name == "run" else 6))
    assert len(drawn) >= 5
    assert {name: found for name, figure in drawn.items() if (found := complaints(figure))} == {}


def test_this_check_can_fail() -> None:
    figure = scaling()
    figure.text(0.99, 0.5, "sticks out to the right")
    figure.text(0.5, 0.5, "twice")
    figure.text(0.5, 0.5, "in one place")
    figure.axes[0].set_title("", loc="left")
    kinds = {complaint.split(":")[0] for complaint in complaints(figure)}
    assert kinds == {"cut off", "overlap", "no title"}


def test_heat_map_shows_the_values_of_the_run() -> None:
    diagnosis = gallery.run()
    figure = figures.heat_map(diagnosis, "attention.entropy")
    shown = np.asarray(figure.axes[0].collections[0].get_array()).reshape(3, -1)
    recorded = [s.values for s in diagnosis.series if s.name == "attention.entropy"]
    np.testing.assert_allclose(shown, np.stack(recorded))
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == [
        "gnn_base.gnn.gnn1", "gnn_base.gnn.gnn2.0", "gnn_base.gnn.gnn2.1",
    ]  # fmt: skip
    assert {t.get_text() for t in figure.legends[0].get_texts()} == {"non-finite value", "other event"}


def test_long_runs_keep_their_worst_value() -> None:
    base = gallery.run()
    steps = np.arange(50_000)
    values = np.ones(50_000)
    values[31_415] = 1e6
    series = tuple(type(s)(s.name, s.layer, s.head, steps, values) for s in base.series if s.name == "score.max_abs")
    diagnosis = Diagnosis(base.target, base.coverage, (), (), (), layers=base.layers, series=series)
    shown = np.asarray(figures.heat_map(diagnosis).axes[0].collections[0].get_array())
    assert shown.size <= 3 * 600
    assert shown.max() == 1e6


def test_nothing_to_draw_is_said_in_one_line(tmp_path: Path) -> None:
    empty = Diagnosis(Target("model", "m"), Coverage(0, 0), (), (), ())
    of_any_layer = (figures.depth_profile, figures.score_ranges, figures.spectral_norms)
    for make in (figures.heat_map, figures.before_after, *of_any_layer):
        with pytest.raises(NothingEvaluable, match="nothing to draw"):
            make(empty)
    with pytest.raises(NothingEvaluable, match="finite scores of nowhere"):
        figures.score_distribution(gallery.run(), "nowhere")
    assert figures.write_all(empty, tmp_path) == []


def test_files_are_the_same_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gnnstab.report.figures._writing.DPI", 40)
    monkeypatch.setattr("gnnstab.report.figures._writing.DISTRIBUTIONS", 0)
    first = figures.write_all(gallery.single_step(), tmp_path / "a")
    (tmp_path / "own").write_text("kept")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / first[0].name).symlink_to(tmp_path / "own")
    second = figures.write_all(gallery.single_step(), tmp_path / "b")
    assert [p.name for p in first] == [p.name for p in second]
    assert {p.suffix for p in first} == {".png", ".svg"}
    for a, b in zip(first, second, strict=True):
        assert a.read_bytes() == b.read_bytes(), a.name
    assert (tmp_path / "own").read_text() == "kept"


def test_settings_of_a_file_in_the_folder_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gnnstab.report.figures._writing.DPI", 20)
    diagnosis = gallery.single_step()

    def one(folder: str) -> bytes:
        named = itertools.islice(all_figures(diagnosis), 1)
        return write_figures(named, tmp_path / folder)[1].read_bytes()

    plain = one("plain")
    own = {"text.usetex": True, "font.size": 30.0, "svg.fonttype": "none", "savefig.facecolor": "red"}
    with mpl.rc_context(own):
        assert one("settings") == plain
        assert {key: mpl.rcParams[key] for key in own} == own


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write figures to"):
        figures.write_all(gallery.single_step(), tmp_path / "file" / "plots")


def test_no_global_state_is_left_behind() -> None:
    before = dict(mpl.rcParams)
    for _, figure in itertools.islice(all_figures(gallery.single_step()), 4):
        assert isinstance(figure, Figure)
    assert dict(mpl.rcParams) == before
    code = "import sys, gnnstab.report.figures; print('matplotlib.pyplot' in sys.modules)"
    assert answer(code) == "False"


def answer(code: str) -> str:
    tests = Path(__file__).parents[1]
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tests
    ).stdout.strip()


def test_text_and_page_do_not_import_matplotlib() -> None:
    code = (
        "import sys, examples; from gnnstab.report import render\n"
        "[render(examples.one_finding(), f) for f in ('text', 'html')]; print('matplotlib' in sys.modules)"
    )
    assert answer(code) == "False"


def test_names_with_dollars_and_unknown_glyphs_are_drawn_as_text() -> None:
    assert drawable("$\\frac{x}$ 層 \U0001f9ea \x1b") == "$\\frac{x}$ \\u5c64 \\u1f9ea \\x1b"


def grown() -> Scaling:
    """Two layers whose one-hot share and fp16 headroom move with in-degree; the second stays out of reach."""

    def measured(d: int) -> dict[str, float]:
        shares = {"attention.one_hot_share|gnn1": d / 40, "attention.one_hot_share|gnn2.0": d / 400}
        spreads = {"score.std|gnn1": d**1.5, "score.std|gnn2.0": float(d)}
        return {**shares, "precision.fp16_headroom|gnn1": 5000 / d**2, **spreads}

    return evaluate([Point(d, 64, "fp32", measured(d)) for d in (4, 8, 16, 32)])


def test_growth_is_drawn_with_the_in_degree_at_which_it_breaks(tmp_path: Path) -> None:
    drawn = dict(figures.growth_figures(grown()))
    assert list(drawn) == ["scaling-attention-one-hot-share", "scaling-precision-fp16-headroom"]
    shown = drawn["scaling-attention-one-hot-share"]
    (legend,) = [ax.get_legend() for ax in shown.axes]
    limit = next(limit for limit in grown().limits if limit.layer == "gnn1" and limit.signal.endswith("one_hot_share"))
    assert 8 < limit.degree < 16
    assert f"breaks at {short(limit.degree)}" in legend.get_texts()[0].get_text()
    assert shown.axes[0].get_xlabel() == "mean in-degree"
    assert [complaints(figure) for figure in drawn.values()] == [[], []]
    paths = figures.write_growth(grown(), tmp_path / "new")
    assert [p.suffix for p in paths] == [".png", ".svg"] * 2
    assert all(p.stat().st_size > 1000 for p in paths)


def test_scaling_curve_tells_where_each_curve_breaks() -> None:
    figure = scaling()
    told = [t.get_text() for t in figure.axes[0].get_legend().get_texts()]
    assert told[0].startswith("as it is\nbreaks at 30")
    assert told[1] == "mean"
    with pytest.raises(UsageError, match="'a' has 1 values for 2 sizes"):
        figures.scaling_curve([1, 2], {"a": [1.0]}, signal="score.std")
    empty = figures.scaling_curve([1, 2], {"a": [math.nan, math.nan]}, signal="score.std")
    assert any("no finite value" in text.get_text() for text in empty.axes[0].texts)


@pytest.mark.parametrize(
    ("values", "limit", "place"),
    [
        ([1.0, 4.0, 16.0], Limit(64.0, "error", "above"), 80.0),  # exponent 2, beyond the last size
        ([1.0, 4.0, 16.0], Limit(8.0, "error", "above"), 28.284),  # between two measured sizes
        ([0.8, 0.4, 0.2], Limit(0.1, "error", "below"), 80.0),
        ([1.0, 4.0, 16.0], Limit(0.5, "error", "above"), 10.0),  # bad from the start
        ([16.0, 4.0, 1.0], Limit(64.0, "error", "above"), math.nan),  # moves away
        ([math.nan, math.nan, 1.0], Limit(64.0, "error", "above"), math.nan),
    ],
)
def test_crossing_of_a_power_law(values: list[float], limit: Limit, place: float) -> None:
    found = crossing(np.array([10.0, 20.0, 40.0]), np.array(values), limit)
    assert found == pytest.approx(place, rel=1e-3, nan_ok=True)


def test_the_bar_under_the_scores_is_as_wide_as_what_softmax_can_weigh_and_lies_under_their_middle() -> None:
    diagnosis = gallery.run()
    layer = "gnn_base.gnn.gnn1"
    figure = figures.score_distribution(diagnosis, layer)
    found = Evidence(diagnosis).distributions(layer)
    bars = [line.get_xdata() for line in figure.axes[0].lines if line.get_linewidth() == 2.5]
    assert len(bars) == len(found) == 3
    for (left, right), d in zip(bars, found, strict=True):
        assert right - left == pytest.approx(6 * math.sqrt(2 * math.log(9)))
        assert (left + right) / 2 == pytest.approx(d.middle)
        assert d.middle == pytest.approx(np.average((d.edges[1:] + d.edges[:-1]) / 2, weights=d.counts))


def test_a_fix_of_two_causes_is_drawn_once() -> None:
    diagnosis = gallery.run()
    twice = replace(diagnosis, causes=(*diagnosis.causes, *diagnosis.causes))

    def names(d: Diagnosis) -> list[str]:
        return [label.get_text() for ax in figures.before_after(d).axes for label in ax.get_yticklabels()]

    assert names(twice) == names(diagnosis) != []
