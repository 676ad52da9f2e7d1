"""A trace as tables: pandas frames or Parquet files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gnnstab.errors import MissingExtra, UsageError
from gnnstab.trace import Trace

if TYPE_CHECKING:
    import pandas

TABLES = ("steps", "sites", "measures", "events")
"""Training steps; light-tier statistics, one row per step, layer and site; full-tier numbers; events."""


def to_pandas(trace: Trace) -> dict[str, pandas.DataFrame]:
    """The tables of a trace by name (see `TABLES`), one row per record in order of steps.

    Raises `MissingExtra` when pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise MissingExtra("pandas", "parquet") from error
    return {name: pandas.DataFrame(columns(trace, name)) for name in TABLES}


def to_parquet(trace: Trace, folder: str | os.PathLike[str]) -> list[Path]:
    """Write ``steps.parquet``, ``sites.parquet``, ``measures.parquet`` and ``events.parquet``; returns the paths.

    Raises `MissingExtra` when pyarrow is not installed and `UsageError` when the folder cannot be written.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtra("pyarrow", "parquet") from error
    target = Path(folder)
    paths = []
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name in TABLES:
            path = target / f"{name}.parquet"
            table = pyarrow.table({column: pyarrow.array(values) for column, values in columns(trace, name).items()})
            pyarrow.parquet.write_table(table, path)
            paths.append(path)
    except OSError as error:
        raise UsageError(f"cannot write to {target}: {error.strerror or error}; choose another folder") from error
    return paths


def columns(trace: Trace, table: str) -> Mapping[str, Any]:
    """One table, column by column."""
    return {"steps": _steps, "sites": _sites, "measures": _measures, "events": _events}[table](trace)


def _steps(trace: Trace) -> dict[str, Any]:
    array = trace.step_arrays()
    return {name: np.ascontiguousarray(array[name]) for name in array.dtype.names or ()}


def _sites(trace: Trace) -> dict[str, Any]:
    found = trace.sites()
    if not found:
        texts = {name: np.empty(0, dtype=str) for name in ("layer", "mode", "site")}
        return {**texts, "call": np.empty(0, np.int64), "step": np.empty(0, np.int64)}
    rows = np.concatenate(list(found.values()))
    lengths = [len(array) for array in found.values()]
    keys: dict[str, Any] = {
        name: np.repeat(np.array([getattr(key, name) for key in found]), lengths)
        for name in ("layer", "mode", "call", "site")
    }
    order = np.lexsort((keys["site"], keys["layer"], rows["rank"], rows["step"]))
    numbers = {name: rows[name][order] for name in rows.dtype.names or ()}
    return {"step": numbers.pop("step"), **{name: values[order] for name, values in keys.items()}, **numbers}


def _measures(trace: Trace) -> dict[str, Any]:
    rows = trace.measures()
    names = ("step", "layer", "mode", "call", "name", "head", "value", "detail", "rank")
    return {name: _column([getattr(row, name) for row in rows], name) for name in names}


def _events(trace: Trace) -> dict[str, Any]:
    rows = trace.events()
    found: dict[str, list[Any]] = {name: [getattr(e, name) for e in rows] for name in ("step", "call", "rank")}
    for name in ("kind", "layer", "mode", "stage", "origin", "message"):
        found[name] = [getattr(e, name) or "" for e in rows]
    for name in ("nodes", "edges", "heads"):
        found[name] = [json.dumps(list(getattr(e, name))) for e in rows]
    found["detail"] = [json.dumps(dict(e.detail), default=str, sort_keys=True) for e in rows]
    return {name: _column(values, name) for name, values in found.items()}


def _column(values: list[Any], name: str) -> Any:
    """An array with the column's own type even when it is empty."""
    if name in ("step", "call", "head", "rank"):
        return np.array(values, dtype=np.int64)
    return np.array(values, dtype=np.float64) if name == "value" else np.array(values, dtype=str)
