"""TensorBoard: scalars per step, score histograms and the report at the end."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from gnnstab.errors import MissingExtra
from gnnstab.feed import PREFIX
from gnnstab.records import Diagnosis, Finding
from gnnstab.report import render
from gnnstab.report.escape import name as short_name
from gnnstab.report.evidence import Evidence


class TensorBoardSink:
    """Writes event files that ``tensorboard --logdir`` shows.

    Scalars are named ``gnnstab/score.max_abs/LAYER`` and so on, findings and the report are texts, the score
    distribution of every head is a histogram where the run recorded one.
    Raises `MissingExtra` when tensorboard is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtra("tensorboard", "tensorboard") from error
        self._writer = SummaryWriter(os.fspath(folder))
        self._step = 0

    def on_step(self, step: int, values: Mapping[str, float]) -> None:
        """Write one point per scalar."""
        self._step = step
        for name, value in values.items():
            self._writer.add_scalar(f"{PREFIX}/{name}", value, step)

    def on_finding(self, finding: Finding) -> None:
        """Write a finding as text at its step."""
        step = self._step if finding.step is None else finding.step
        text = short_name(f"{finding.severity}: {finding.message}", 1000)
        self._writer.add_text(f"{PREFIX}/finding/{finding.code}", text, step)

    def on_end(self, diagnosis: Diagnosis) -> None:
        """Write the histograms and the report, and close the file."""
        evidence = Evidence(diagnosis)
        for layer in evidence.layers:
            for d in evidence.distributions(layer):
                if len(d.edges):
                    self._histogram(f"{PREFIX}/score/{short_name(layer, 120)}/head {d.head}", d.edges, d.counts)
        self._writer.add_text(f"{PREFIX}/report", render(diagnosis, "markdown"), self._step)
        self._writer.close()

    def _histogram(self, tag: str, edges: np.ndarray, counts: np.ndarray) -> None:
        middles = (edges[1:] + edges[:-1]) / 2
        total, squares = float((middles * counts).sum()), float((middles**2 * counts).sum())
        # TensorBoard wants the right edge of every bucket; the values in between are those of the bucket's middle.
        self._writer.add_histogram_raw(
            tag,
            min=float(edges[0]),
            max=float(edges[-1]),
            num=int(counts.sum()),
            sum=total,
            sum_squares=squares,
            bucket_limits=edges[1:].tolist(),
            bucket_counts=counts.tolist(),
            global_step=self._step,
        )
