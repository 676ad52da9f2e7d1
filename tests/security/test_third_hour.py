"""What crashed, was a traceback, or let a trace be called stable that shows NaN or that nothing reaches."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch_geometric.nn import TransformerConv

from gnnstab.checkpoint import load, recover
from gnnstab.errors import LoadError
from gnnstab.probe.batches.batch_file import load_batch
from gnnstab.report.summary import state

Odd = Callable[[], torch.Tensor]

ODD: dict[str, Odd] = {
    "nested": lambda: torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]),
    "uninitialised": lambda: nn.UninitializedParameter(requires_grad=False),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(1), 0.1, 0, torch.qint8),
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.filterwarnings("ignore")
def test_odd_tensors_where_numbers_belong(name: str, tmp_path: Path) -> None:
    odd = ODD[name]()
    kept = {0: {"step": odd, "exp_avg": odd, "exp_avg_sq": odd}}
    model = {f"c.{key}": value for key, value in TransformerConv(4, 4).state_dict().items()}
    settings = {"state": kept, "param_groups": [{"lr": odd, "eps": odd, "params": list(range(len(model)))}]}
    torch.save({"model": model, "epoch": odd, "optimizer": settings, "n.num_batches_tracked": odd}, tmp_path / "x.pt")
    assert recover(load(tmp_path / "x.pt"))
    torch.save({"x": odd, "edge_index": torch.zeros(2, 1).long()}, tmp_path / "batch.pt")
    with pytest.raises(LoadError, match=r"no batch|without numbers"):
        load_batch(tmp_path / "batch.pt")


def test_views_that_torch_writes_are_read(tmp_path: Path) -> None:
    made = torch.complex(torch.ones(2), torch.full((2,), 2.0))
    torch.save({"w": made.conj().imag, "z": made.clone().conj()}, tmp_path / "x.pt")
    found = load_batch(tmp_path / "x.pt")
    assert found["w"].tolist() == [-2, -2] and found["z"].tolist() == [1 - 2j] * 2


@pytest.mark.parametrize("name", ["", "..", "."])
def test_an_index_that_names_folders(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(LoadError, match="outside of its folder"):
        load(path)


WEIGHT = "series IN (SELECT id FROM series WHERE site = 'weight')"

AS_WEIGHTS = "UPDATE series SET site = 'weight' WHERE site = 'grad_output'"
"""The run has looked at no parameter."""

NOT_FINITE = {
    "a loss of NaN": ("loss", ("UPDATE step SET loss = 'nan' WHERE step >= 1",)),
    "an infinite loss": ("loss", ("UPDATE step SET loss = 9e999 WHERE step >= 1",)),
    "entries that are not finite": ("", ("UPDATE statistic SET non_finite = 1 WHERE step >= 1",)),
    "a weight that began finite": (
        "weight",
        (AS_WEIGHTS, f"UPDATE statistic SET non_finite = 1 WHERE step >= 1 AND {WEIGHT}"),
    ),
    "a gradient of the last step": (
        "gradient",
        ("UPDATE step SET grad_norm = 'nan' WHERE step = (SELECT max(step) FROM step)",),
    ),
    "an infinite largest entry": ("", ("UPDATE statistic SET maximum = 9e999 WHERE step >= 1",)),
}


@pytest.mark.parametrize("name", NOT_FINITE)
def test_rows_speak_where_no_event_does(name: str, changed: Callable[..., Any]) -> None:
    stage, statements = NOT_FINITE[name]
    (found,) = [finding for finding in changed(*statements).findings if finding.code == "GS502"]
    assert (
        found.severity == "error" and found.step >= 1 and ("holds no event of it" in found.message or stage == "weight")
    )
    assert not found.cause and (found.layer is None) == (stage in ("loss", "gradient"))


QUIET = {
    "weights that were never finite": f"{AS_WEIGHTS}; UPDATE statistic SET non_finite = 1 WHERE {WEIGHT}",
    "weights that are finite again": f"{AS_WEIGHTS}; UPDATE statistic SET non_finite = 1 WHERE step = 1 AND {WEIGHT}",
    "a gradient of an earlier step": "UPDATE step SET grad_norm = 'nan' WHERE step < (SELECT max(step) FROM step)",
    "a last step that a scaler has skipped": "UPDATE step SET grad_norm = 9e999, skipped = 1 WHERE step = (SELECT max(step) FROM step)",
    "a loss that is not known": "UPDATE step SET loss = NULL",
    "a step that a scaler has skipped": "UPDATE step SET loss = 'nan', skipped = 1 WHERE step = 1",
    "gradients that a scaler drops": "UPDATE statistic SET non_finite = 1 WHERE series IN (SELECT id FROM series WHERE site LIKE '%grad%')",
    "an evaluation": "UPDATE statistic SET non_finite = 1 WHERE series IN (SELECT id FROM series WHERE mode LIKE 'eval%')",
    "as it was written": "UPDATE step SET lr = lr",
}


@pytest.mark.parametrize("name", QUIET)
def test_what_may_be_so_on_purpose_says_nothing(name: str, changed: Callable[..., Any]) -> None:
    assert not [finding for finding in changed(*QUIET[name].split("; ")).findings if finding.code in ("GS502", "GS903")]


MALFORMED = {
    "no level": "DELETE FROM resolution",
    "levels that end where they begin": "UPDATE resolution SET until = since",
    "a gap": "UPDATE resolution SET until = 1 WHERE level = 0",
    "no series": "DELETE FROM series",
    "a mode that there is none of": "UPDATE series SET mode = 'Train'",
    "fewer than no entries": "UPDATE statistic SET count = -1",
    "fewer than no steps": "UPDATE statistic SET span = -5",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_rows_that_nothing_reaches_are_not_stable(name: str, changed: Callable[..., Any]) -> None:
    diagnosis = changed("UPDATE statistic SET maximum = NULL, non_finite = 1", "DELETE FROM measure", MALFORMED[name])
    (found,) = [finding for finding in diagnosis.findings if "malformed" in finding.message]
    assert (found.code, found.severity) == ("GS903", "warning")
    assert state(diagnosis) in ("not-evaluable", "unstable")


@pytest.mark.parametrize("table", ["statistic", "measure", "step"])
def test_a_table_whose_rows_were_taken_out_is_not_seen(table: str, changed: Callable[..., Any]) -> None:
    diagnosis = changed(f"DELETE FROM {table}")
    (found,) = [
        finding for finding in diagnosis.findings if finding.code == "GS903" and "holds no row" in finding.message
    ]
    assert found.severity == "warning" and f"{table}s" in found.message
    assert state(diagnosis) in ("not-evaluable", "unstable")


@pytest.mark.parametrize("text", ["\u00b2", "9" * 5000, "\u0661", "-1"])
def test_counts_that_are_none(text: str, changed: Callable[..., Any]) -> None:
    lost = changed(f"INSERT OR REPLACE INTO meta VALUES ('malformed.rows', '{text}')").context["rows_lost"]
    assert lost in (0, 1) and math.isfinite(lost)
    stale = changed(f"INSERT OR REPLACE INTO meta VALUES ('stale.gradients', '{text}')").context["stale_gradients"]
    assert stale in (False, 1)
