"""A trace as tables: what is read back is what was recorded."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from gnnstab.errors import UsageError
from gnnstab.sinks.export import TABLES, columns, to_pandas, to_parquet
from gnnstab.trace import Trace, TraceWriter


def test_pandas(trace: Trace) -> None:
    pytest.importorskip("pandas", reason="pandas is not installed (pip install 'gnnstab[parquet]')")
    frames = to_pandas(trace)
    assert tuple(frames) == TABLES
    steps, sites, measures = frames["steps"], frames["sites"], frames["measures"]
    assert steps["loss"].iloc[0] == 2.0
    assert len(steps) == 30
    assert len(sites) == 30 * 3 * 4
    conv2 = sites[(sites.layer == "net.conv2") & (sites.site == "score")]
    assert conv2["maximum"].tolist() == [(4.0 + s) / 2 for s in range(30)]
    assert sites["step"].is_monotonic_increasing
    assert set(measures["name"]) == {"attention.entropy", "degree.median"}
    event = frames["events"].iloc[0]
    assert (event["step"], event["kind"], event["stage"], event["origin"]) == (25, "non-finite", "score", "made-here")


def test_parquet(trace: Trace, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed (pip install 'gnnstab[parquet]')")
    paths = to_parquet(trace, tmp_path / "tables")
    assert [p.name for p in paths] == [f"{name}.parquet" for name in TABLES]
    for path, name in zip(paths, TABLES, strict=True):
        table = parquet.read_table(path)
        for column, values in columns(trace, name).items():
            read = np.asarray(table[column].to_pylist(), dtype=np.asarray(values).dtype)
            np.testing.assert_array_equal(read, values)
    scores = parquet.read_table(paths[1]).filter(
        parquet.filters_to_expression([("site", "=", "score"), ("layer", "=", "net.conv3")])
    )
    assert math.isinf(scores["maximum"].to_pylist()[25])


def test_an_empty_trace_gives_empty_tables_with_their_columns(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed (pip install 'gnnstab[parquet]')")
    with TraceWriter(None) as writer, writer.read() as trace:
        paths = to_parquet(trace, tmp_path)
    for path in paths:
        table = parquet.read_table(path)
        assert table.num_rows == 0
        assert "step" in table.column_names


def test_a_folder_that_cannot_be_made_is_named(trace: Trace, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed (pip install 'gnnstab[parquet]')")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write to"):
        to_parquet(trace, tmp_path / "file" / "folder")
