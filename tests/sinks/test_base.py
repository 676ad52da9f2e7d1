"""What sinks are fed with, and that none of them can disturb a training."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

import gnnstab.sinks
from gnnstab.errors import GnnstabWarning, MissingExtra
from gnnstab.records import SeriesKey, StepRow
from gnnstab.sinks import Feed, Sink, replay, step_values
from gnnstab.trace import Trace
from noting import Notes


def test_a_recorded_run_streams_steps_findings_and_the_end(trace: Trace) -> None:
    notes = Notes()
    assert isinstance(notes, Sink)
    diagnosis = replay(trace, [notes])
    assert [what for method, what in notes.told if method == "on_step"] == list(range(30))
    codes = [what for method, what in notes.told if method == "on_finding"]
    assert codes == [f.code for f in diagnosis.findings]
    assert "GS502" in codes
    assert notes.told[-1] == ("on_end", "trace")
    first = notes.values[0]
    assert first["loss"] == 2.0
    assert first["score.max_abs/net.conv1"] == 4.0
    assert first["attention.entropy/net.conv2"] == pytest.approx(0.95)
    assert math.isinf(notes.values[25]["score.max_abs/net.conv3"])


def test_calls_of_one_layer_are_merged_and_evaluation_is_left_out() -> None:
    row = StepRow(3, 0.0, None, 0.1, None, 2.0)
    stats = {
        SeriesKey("a", "train", 0, "score"): (-5.0, 2.0, 1.0),
        SeriesKey("a", "train", 1, "score"): (-1.0, 9.0, 1.0),
        SeriesKey("a", "eval", 0, "score"): (-99.0, 99.0, 1.0),
        SeriesKey("a", "train", 0, "output"): (0.0, 0.0, math.nan),
        SeriesKey("a", "train", 1, "output"): (0.0, 0.0, 5.0),
    }
    values = step_values(row, stats)
    assert values.pop("output.rms/a") != values.get("output.rms/a")  # the NaN stays
    assert values == {"lr": 0.1, "gradient.norm": 2.0, "score.max_abs/a": 9.0}


def test_hostile_layer_names_are_made_visible_in_metric_names() -> None:
    (name,) = step_values(None, {SeriesKey("a\x1b[31m\n" + "x" * 999, "train", 0, "score"): (0.0, 1.0, 1.0)})
    assert name.startswith("score.max_abs/a\\x1b[31m\\n")
    assert len(name) < 150


@pytest.mark.parametrize("method", ["on_step", "on_finding", "on_end"])
def test_a_failing_sink_is_told_about_once_and_left_out(method: str, trace: Trace) -> None:
    bad, good = Notes(broken=method), Notes()
    with pytest.warns(GnnstabWarning, match=rf"Notes.{method} failed .* ConnectionError: the service is away") as told:
        replay(trace, [bad, good])
    assert len([w for w in told if "left out" in str(w.message)]) == 1
    assert good.told[-1] == ("on_end", "trace")
    assert all(name != method for name, _ in bad.told)


def test_rows_of_the_monitor() -> None:
    notes = Notes()
    keys = [SeriesKey("a", "train", 0, "score"), SeriesKey("b", "train", 0, "output")]
    Feed([notes]).row(StepRow(7, 0.0, 1.5, None, None, None), keys, np.array([[-3.0, 2, 1, 9, 0], [0, 1, 0.5, 9, 0]]))
    assert notes.values == {7: {"loss": 1.5, "score.max_abs/a": 3.0, "output.rms/b": 0.5}}


def test_an_empty_feed_costs_nothing() -> None:
    assert not Feed([])


MISSING = {
    "TensorBoardSink": (["tensorboard", "torch.utils.tensorboard"], "tensorboard"),
    "WandbSink": (["wandb"], "wandb"),
    "MlflowSink": (["mlflow", "mlflow.entities", "mlflow.tracking"], "mlflow"),
}


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_extra_is_one_line_that_names_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    modules, extra = MISSING[name]
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=rf"pip install 'gnnstab\[{extra}\]'") as raised:
        getattr(gnnstab.sinks, name)(*(["folder"] if name == "TensorBoardSink" else []))
    assert "\n" not in str(raised.value)


def test_missing_lightning_pandas_and_pyarrow(monkeypatch: pytest.MonkeyPatch, trace: Trace, tmp_path: object) -> None:
    for module in ("lightning", "lightning.pytorch", "pandas", "pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "gnnstab.sinks.lightning", raising=False)
    with pytest.raises(MissingExtra, match=r"gnnstab\[lightning\]"):
        gnnstab.sinks.GnnstabCallback  # noqa: B018
    with pytest.raises(MissingExtra, match=r"pandas is not installed.*gnnstab\[parquet\]"):
        gnnstab.sinks.to_pandas(trace)
    with pytest.raises(MissingExtra, match=r"pyarrow is not installed.*gnnstab\[parquet\]"):
        gnnstab.sinks.to_parquet(trace, str(tmp_path))


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        gnnstab.sinks.Nonsense  # noqa: B018
