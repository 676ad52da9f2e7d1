"""TensorBoard reads back what the sink wrote."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch_geometric.nn import TransformerConv

import gallery
import gnnstab
from gnnstab.sinks import TensorBoardSink, replay
from gnnstab.trace import Trace

pytest.importorskip("tensorboard", reason="tensorboard is not installed (pip install 'gnnstab[tensorboard]')")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def accumulated(folder: Path) -> object:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0, "histograms": 0})
    found.Reload()
    return found


def test_scalars_texts_and_report(trace: Trace, tmp_path: Path) -> None:
    diagnosis = replay(trace, [TensorBoardSink(tmp_path)])
    read = accumulated(tmp_path)
    loss = read.Scalars("gnnstab/loss")
    assert [e.step for e in loss] == list(range(30))
    assert loss[0].value == 2.0
    scores = read.Scalars("gnnstab/score.max_abs/net.conv3")
    assert scores[0].value == pytest.approx(4 / 3)
    assert math.isinf(scores[25].value)
    report = read.Tensors("gnnstab/report/text_summary")[0].tensor_proto.string_val[0].decode()
    assert all(f.code in report for f in diagnosis.findings)
    assert read.Tensors("gnnstab/finding/GS502/text_summary")


def test_score_histograms(tmp_path: Path) -> None:
    sink = TensorBoardSink(tmp_path)
    sink.on_step(400, {"loss": 1.0})
    diagnosis = gallery.run()
    sink.on_end(diagnosis)
    read = accumulated(tmp_path)
    assert len(read.Tags()["histograms"]) == 9
    (event,) = read.Histograms("gnnstab/score/gnn_base.gnn.gnn1/head 0")
    recorded = next(s for s in diagnosis.signals if s.layer == "gnn_base.gnn.gnn1" and "histogram" in s.detail)
    assert event.step == 400
    assert event.histogram_value.num == 4000
    assert list(event.histogram_value.bucket) == recorded.detail["histogram"]["counts"].tolist()


def test_a_monitored_run_leaves_the_histogram_of_every_head(tmp_path: Path) -> None:
    torch.manual_seed(0)
    conv, edges = TransformerConv(4, 8, heads=2), torch.randint(0, 12, (2, 60))
    with gnnstab.Monitor(conv, sinks=[TensorBoardSink(tmp_path)], on_finding="ignore") as monitor:
        conv(torch.randn(12, 4), edges).sum().backward()
        monitor.step()
    read = accumulated(tmp_path)
    names = read.Tags()["histograms"]
    assert len(names) == 2
    assert [read.Histograms(name)[0].histogram_value.num for name in names] == [60, 60]
