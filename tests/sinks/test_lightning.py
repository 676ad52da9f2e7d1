"""The Lightning callback in a real Trainer: it logs, warns, stops, and leaves the module as it found it."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from gnnstab.errors import UsageError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    lightning = pytest.importorskip(
        "lightning.pytorch", reason="lightning is not installed (pip install 'gnnstab[lightning]')"
    )
    from lightning.pytorch.loggers import CSVLogger

    from gnnstab.sinks import GnnstabCallback

from torch.utils.data import DataLoader, TensorDataset
from torch_geometric.nn import TransformerConv

from gnnstab.trace import Trace

pytestmark = pytest.mark.filterwarnings("ignore")

STEPS = 12


class Network(lightning.LightningModule):  # type: ignore[misc]
    """Two attention layers on one small graph; ``break_at`` makes a step's input infinite."""

    def __init__(self, break_at: int | None = None) -> None:
        super().__init__()
        self.first = TransformerConv(4, 8, heads=2, concat=False)
        self.second = TransformerConv(8, 1, heads=1)
        self.break_at = break_at

    def training_step(self, batch: tuple[torch.Tensor, ...], index: int) -> torch.Tensor:
        (x,) = batch
        if index == self.break_at:
            x = x * float("inf")
        edges = torch.cartesian_prod(torch.arange(6), torch.arange(6)).T
        return self.second(self.first(x, edges).relu(), edges).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)

    def train_dataloader(self) -> Any:
        graphs = torch.randn(STEPS, 6, 4, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(graphs), batch_size=None)


def fit(network: Network, folder: Path, *callbacks: Any) -> Any:
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=1,
        logger=CSVLogger(folder, name="log", version="0"),
        callbacks=list(callbacks),
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(network)
    return trainer


def test_numbers_reach_the_loggers_of_the_trainer(tmp_path: Path) -> None:
    callback = GnnstabCallback(trace=tmp_path / "run.gnnstab", schedule=5)
    fit(Network(), tmp_path, callback)
    with (tmp_path / "log" / "0" / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    scores = [float(row["gnnstab/score.max_abs/first"]) for row in rows if row.get("gnnstab/score.max_abs/first")]
    assert len(scores) >= STEPS - 2
    with Trace.open(tmp_path / "run.gnnstab") as trace:
        (array,) = trace.sites(layer="first", site="score", mode="train").values()
        assert trace.complete
    recorded = {float(max(abs(row["minimum"]), abs(row["maximum"]))) for row in array}
    assert all(any(abs(score - r) < 1e-6 for r in recorded) for score in scores)
    assert callback.diagnosis is not None
    assert callback.diagnosis.coverage.layers_observed == 2


def test_stop_ends_the_fit_after_the_first_finding(tmp_path: Path) -> None:
    callback = GnnstabCallback(on_finding="stop")
    trainer = fit(Network(break_at=3), tmp_path, callback)
    assert any(f.code == "GS502" for f in callback.findings)
    assert trainer.global_step < STEPS
    assert callback.diagnosis is not None
    assert any(f.code == "GS502" for f in callback.diagnosis.findings)


def test_warn_tells_and_goes_on(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="GS502"):
        trainer = fit(Network(break_at=3), tmp_path, GnnstabCallback())
    assert trainer.global_step == STEPS


def test_training_is_the_same_with_and_without(tmp_path: Path) -> None:
    weights = []
    for callbacks in ((), (GnnstabCallback(on_finding="ignore", schedule=3),)):
        torch.manual_seed(1)
        network = Network()
        fit(network, tmp_path / str(len(callbacks)), *callbacks)
        weights.append([p.detach().clone() for p in network.parameters()])
        assert not network.first._forward_hooks
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_an_exception_detaches_and_keeps_the_diagnosis(tmp_path: Path) -> None:
    class Fails(Network):
        def training_step(self, batch: tuple[torch.Tensor, ...], index: int) -> torch.Tensor:
            if index == 4:
                raise RuntimeError("out of data")
            return super().training_step(batch, index)

    callback, network = GnnstabCallback(), Fails()
    with pytest.raises(RuntimeError, match="out of data"):
        fit(network, tmp_path, callback)
    assert callback.diagnosis is not None
    assert not network.first._forward_hooks


def test_unknown_action_is_refused() -> None:
    with pytest.raises(UsageError, match="choose from warn, stop, ignore"):
        GnnstabCallback(on_finding="explode")


@pytest.mark.parametrize(
    ("world", "environment", "expected"),
    [(1, "", "run.gnnstab"), (2, "", "run.rank1.gnnstab"), (2, "1", "run.gnnstab")],
)
def test_every_rank_writes_its_own_trace(
    world: int, environment: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under torchrun (RANK is set) the monitor adds the rank itself."""
    monkeypatch.setenv("RANK", environment) if environment else monkeypatch.delenv("RANK", raising=False)

    class Ranked:
        world_size, global_rank = world, 1

    assert GnnstabCallback(trace=tmp_path / "run.gnnstab")._path(Ranked()) == tmp_path / expected
