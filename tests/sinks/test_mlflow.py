"""MLflow with a local SQLite store reads back metrics, tags, report and figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import runs
from gnnstab.sinks import MlflowSink, replay
from gnnstab.sinks.mlflow import metric_name
from gnnstab.trace import Trace

pytest.importorskip("mlflow", reason="mlflow is not installed (pip install 'gnnstab[mlflow]')")
pytestmark = pytest.mark.filterwarnings("ignore")


def store(folder: Path) -> str:
    """SQLite where its driver is there, which mlflow-skinny leaves out; plain files otherwise."""
    try:
        import sqlalchemy  # noqa: F401
    except ImportError:
        return (folder / "runs").as_uri()
    return f"sqlite:///{folder / 'runs.db'}"


def test_metrics_tags_report_and_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setattr("gnnstab.report.figures._writing.DPI", 40)
    runs.record(tmp_path / "run.gnnstab", 8, ("net.conv1",))
    uri = store(tmp_path)
    sink = MlflowSink(tracking_uri=uri, experiment="agents")
    with Trace.open(tmp_path / "run.gnnstab") as trace:
        diagnosis = replay(trace, [sink])
    client = MlflowClient(tracking_uri=uri)
    history = client.get_metric_history(sink.run_id, "gnnstab/loss")
    assert [(m.step, m.value) for m in sorted(history, key=lambda m: m.step)][:1] == [(0, 2.0)]
    assert len(history) == 8
    run = client.get_run(sink.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["gnnstab.verdict"] in ("stable", "unstable")
    assert {"gnnstab/report.html", "gnnstab/report.json"} <= {
        a.path for a in client.list_artifacts(sink.run_id, "gnnstab")
    }
    assert any(a.path.endswith(".png") for a in client.list_artifacts(sink.run_id, "gnnstab/figures"))
    report = Path(client.download_artifacts(sink.run_id, "gnnstab/report.json", str(tmp_path)))
    assert json.loads(report.read_text())["schema_version"] == diagnosis.to_dict()["schema_version"]


@pytest.mark.parametrize(
    ("name", "accepted"),
    [
        ("score.max_abs/net.conv1", "gnnstab/score.max_abs/net.conv1"),
        ("score.max_abs/<img src=x>", "gnnstab/score.max_abs/_img src_x_"),
        ("score.max_abs/../../etc", "gnnstab/score.max_abs/etc"),
        ("x/" + "y" * 400, "gnnstab/x/" + "y" * 240),
    ],
)
def test_metric_names_that_mlflow_accepts(name: str, accepted: str) -> None:
    assert metric_name(name) == accepted
