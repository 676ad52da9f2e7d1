"""MLflow: metrics per step, the report in several formats and the figures as artifacts."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gnnstab.errors import MissingExtra
from gnnstab.feed import PREFIX
from gnnstab.records import Diagnosis, Finding
from gnnstab.report import render, summary

REPORTS = {"html": "report.html", "json": "report.json", "text": "report.txt"}

_FORBIDDEN = re.compile(r"[^\w\-. :/]", re.ASCII)
_CHUNK = 1000


class MlflowSink:
    """Logs to an MLflow run through a client of its own, so that the active run of the user is not touched.

    ``tracking_uri`` as for MLflow (``sqlite:///runs.db``, a folder, a server); ``run_id`` continues a run and leaves
    it open, otherwise a run is created in ``experiment`` and ended. ``figures=False`` leaves the figures out.
    Raises `MissingExtra` when mlflow is not installed.
    """

    def __init__(
        self,
        *,
        tracking_uri: str | None = None,
        experiment: str = "gnnstab",
        run_id: str | None = None,
        figures: bool = True,
    ) -> None:
        try:
            from mlflow.entities import Metric
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise MissingExtra("mlflow", "mlflow") from error
        self._metric = Metric
        self._client = MlflowClient(tracking_uri=tracking_uri)
        self._owned = run_id is None
        self._figures = figures
        self.run_id: str = self._create(experiment) if run_id is None else run_id
        self._waiting: list[Any] = []

    def _create(self, experiment: str) -> str:
        found = self._client.get_experiment_by_name(experiment)
        number = found.experiment_id if found is not None else self._client.create_experiment(experiment)
        return str(self._client.create_run(number).info.run_id)

    def on_step(self, step: int, values: Mapping[str, float]) -> None:
        """Keep the numbers of one step; they are sent in batches."""
        self._wait(values, step)
        if len(self._waiting) >= _CHUNK:
            self._send()

    def on_finding(self, finding: Finding) -> None:
        """Log a finding's number under its code."""
        self._wait({f"finding/{finding.code}": finding.value}, finding.step or 0)

    def on_end(self, diagnosis: Diagnosis) -> None:
        """Send what waits, the verdict as tags, report and figures as artifacts, and end an own run."""
        self._send()
        self._client.set_tag(self.run_id, f"{PREFIX}.verdict", summary.state(diagnosis))
        self._client.set_tag(self.run_id, f"{PREFIX}.root_causes", ", ".join(c.cause for c in diagnosis.root_causes()))
        with tempfile.TemporaryDirectory() as folder:
            for format, name in REPORTS.items():
                Path(folder, name).write_text(render(diagnosis, format), encoding="utf-8")
            if self._figures:
                from gnnstab.report.figures import write_all

                write_all(diagnosis, Path(folder, "figures"))
            self._client.log_artifacts(self.run_id, folder, PREFIX)
        if self._owned:
            self._client.set_terminated(self.run_id)

    def _wait(self, values: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        self._waiting += [self._metric(metric_name(name), float(value), now, step) for name, value in values.items()]

    def _send(self) -> None:
        for start in range(0, len(self._waiting), _CHUNK):
            self._client.log_batch(self.run_id, metrics=self._waiting[start : start + _CHUNK])
        self._waiting = []


def metric_name(name: str) -> str:
    """A name that MLflow accepts: every character that it does not is an underscore; at most 250 of them."""
    safe = _FORBIDDEN.sub("_", f"{PREFIX}/{name}")
    # A name is a path to MLflow: no empty, dotted or upward parts.
    parts = [part for part in safe.split("/") if part.strip(".")]
    return "/".join(parts)[:250]
