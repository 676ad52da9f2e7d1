"""Non-finite values: found, located, told apart from what is normal, and reproducible from the bundle."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from gnnstab.errors import LoadError
from gnnstab.probe.recorder import Recorder
from gnnstab.probe.replaying import bundle
from gnnstab.probe.replaying.provenance import locate_non_finite
from gnnstab.records import Event
from gnnstab.trace import TraceWriter
from models.convnets import CASES, SquareRoot, Stack, graph, scalar


def events(model: nn.Module, *batches: Any, loss: Any = scalar, **options: Any) -> list[Event]:
    """Train on the batches and return the events."""
    with TraceWriter(None) as writer, Recorder(model, writer, **options) as recorder:
        for args in batches:
            model.zero_grad()
            value = loss(model(*args))
            if value.requires_grad:
                value.backward()
            recorder.loss(value)
            recorder.end_step()
        return recorder.events


def test_a_score_that_overflows_is_made_here() -> None:
    model, args = CASES[0].make()
    with torch.no_grad():
        model.convs[1].lin_query.weight *= 1e30
        model.convs[1].lin_key.weight *= 1e30
    (event,) = events(model, args, args)
    assert (event.layer, event.stage, event.origin, event.mode) == ("convs.1", "score", "made-here", "train")
    assert event.detail["weights_finite"]


def test_a_nan_in_the_data_came_in() -> None:
    model, (x, *rest) = CASES[0].make()
    x[3, 2] = math.nan
    (event,) = events(model, (x, *rest))
    assert (event.stage, event.origin) == ("input", "came-in")
    assert event.nodes == (3,)


def test_only_the_first_event_of_a_kind_is_located() -> None:
    model, (x, *rest) = CASES[0].make()
    bad = (torch.full_like(x, math.nan), *rest)
    assert len(events(model, bad, bad, bad)) == 1


def test_weights_that_went_bad_are_named() -> None:
    model, args = CASES[0].make()
    with torch.no_grad():
        model.convs[0].lin_value.bias[0] = math.inf
    (event,) = events(model, args)
    assert (event.stage, event.layer) == ("weight", "convs.0.lin_value")
    assert event.detail["non_finite_parameters"] == ["convs.0.lin_value.bias"]


def test_a_gradient_that_goes_bad_in_the_model_is_named_without_the_loss() -> None:
    torch.manual_seed(0)
    model = SquareRoot(2)
    model.broken = True
    (event,) = events(model, graph())
    assert (event.stage, event.layer, event.origin) == ("gradient", None, "made-here")
    assert "Sqrt" in event.detail["operation"]["node"]


def test_a_gradient_that_is_bad_from_the_loss_on() -> None:
    model, args = CASES[0].make()
    (event,) = events(model, args, loss=lambda out: (0 * out).sqrt().sum())
    assert (event.stage, event.layer, event.origin) == ("gradient", "convs.1", "came-in")


def test_a_loss_that_is_not_finite() -> None:
    model, args = CASES[0].make()
    (event,) = events(model, args, loss=lambda out: out.detach().sum() * math.inf)
    assert event.stage == "loss"


def test_when_the_forward_cannot_be_run_again_the_recorded_extremes_decide() -> None:
    class Uncopyable(Stack):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("not this one")

    torch.manual_seed(0)
    model, args = Uncopyable(2), graph()
    with torch.no_grad():
        model.convs[1].lin_query.weight *= 1e30
        model.convs[1].lin_key.weight *= 1e30
    (event,) = events(model, args)
    assert (event.layer, event.stage, event.origin) == ("convs.1", "score", "made-here")
    assert "not this one" in event.detail["note"]


def test_dropout_is_replayed_with_the_same_random_numbers() -> None:
    class Gambling(Stack):
        def forward(self, *args: Any) -> Tensor:
            out = super().forward(*args)
            return out / torch.nn.functional.dropout(torch.ones(()), 0.5, self.training)

    torch.manual_seed(3)
    model, args = Gambling(1), graph()
    (event,) = events(model, *[args] * 12, loss=lambda out: self_or(out))
    assert "finite" in event.message


def self_or(out: Tensor) -> Tensor:
    """A finite loss whatever comes."""
    return torch.nan_to_num(out, nan=0.0, posinf=0.0, neginf=0.0).square().mean()


def test_the_step_after_an_event_is_measured_in_full() -> None:
    model, (x, *rest) = CASES[0].make()
    batches = [(x, *rest), (x * math.inf, *rest), (x, *rest), (x, *rest)]
    with TraceWriter(None) as writer, Recorder(model, writer, full_every=0) as recorder:
        for args in batches:
            model(*args)
            recorder.end_step()
        assert {m.step for m in writer.read().measures("attention.entropy")} == {2}


def test_bundle(tmp_path: Path) -> None:
    class OnData(Stack):
        def forward(self, data: Data, extra: dict[str, Any]) -> Tensor:
            return super().forward(data.x * extra["scale"], data.edge_index, data.edge_attr)

    torch.manual_seed(0)
    x, edge_index, edge_attr = graph()
    args = (Data(x=x, edge_index=edge_index, edge_attr=edge_attr, name="g"), {"scale": 1e25, "odd": object()})
    model = OnData(1, dropout=0.5)
    (event,) = events(model, args, bundles=tmp_path / "run.gnnstab")
    folder = tmp_path / "run.bundle-0"
    assert event.detail["bundle"] == str(folder)
    found = bundle.read(folder)
    assert found.event["stage"] == event.stage
    assert len(found.left_out) == 1
    assert "odd" in found.left_out[0]
    assert torch.equal(found.inputs.args[0].x, x)
    assert found.inputs.args[0].name == "g"
    fresh = OnData(1, dropout=0.5)
    fresh.load_state_dict(found.weights)
    again = locate_non_finite(fresh, found.inputs)
    assert again is not None
    assert (again.stage, again.layer, again.edges) == (event.stage, event.layer, event.edges)


def test_bundles_of_a_trace_in_memory_and_of_a_full_disk(tmp_path: Path) -> None:
    model, (x, *rest) = CASES[0].make()
    (event,) = events(model, (x * math.nan, *rest))
    assert "in memory" in event.detail["bundle_note"]
    (event,) = events(model, (x * math.nan, *rest), bundles=tmp_path / "file" / "run.gnnstab")
    assert (tmp_path / "file" / "run.bundle-0").is_dir()
    (event,) = events(model, (x * math.nan, *rest), bundles=tmp_path / "file" / "run.gnnstab")
    assert "not written" in event.detail["bundle_note"]


@pytest.mark.parametrize("damage", ["event.json", "batch.pt", "weights.pt", "layers.json"])
def test_a_damaged_bundle_is_refused(tmp_path: Path, damage: str) -> None:
    model, (x, *rest) = CASES[0].make()
    events(model, (x * math.nan, *rest), bundles=tmp_path / "run.gnnstab")
    (tmp_path / "run.bundle-0" / damage).write_bytes(b"{}garbage")
    with pytest.raises(LoadError, match=damage):
        bundle.read(tmp_path / "run.bundle-0")


def test_a_budget_that_leaves_steps_out_still_finds_the_first_bad_value() -> None:
    model, (x, *rest) = CASES[0].make()
    with TraceWriter(None) as writer, Recorder(model, writer, full_every=0, budget=1e-6) as recorder:
        step = 0
        while recorder.state.light or step < 40:
            model.zero_grad()
            scalar(model(x, *rest)).backward()
            recorder.end_step(moves=True)
            step += 1
            assert step < 2000
        bad = x.clone()
        bad[5] = math.nan
        scalar(model(bad, *rest)).backward()
        recorder.end_step(moves=True)
        (event,) = recorder.events
    assert (event.step, event.stage, event.origin, event.nodes) == (step, "input", "came-in", (5,))
