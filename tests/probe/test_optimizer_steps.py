"""Trial steps on a copy: what they see, and that nothing of the user's changes."""

from __future__ import annotations

import copy
import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import TransformerConv

import gnnstab
from effort import work
from gnnstab.errors import UsageError
from gnnstab.probe.optimizer._copies import twins
from gnnstab.probe.optimizer.optimizer_steps import Bench, optimizer_signals
from gnnstab.probe.optimizer._trial import Trial
from gnnstab.probe.optimizer.rate import _learning_rate, calm_rate
from gnnstab.probe.optimizer.sizes import change_over_spread


class Net(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv = TransformerConv(6, 8, heads=2)
        self.head = nn.Linear(16, 3)
        self.dropout = dropout

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = nn.functional.dropout(torch.relu(self.conv(x, edge_index)), self.dropout, self.training)
        return self.head(h)


class Several(Net):
    def forward(self, x: Tensor, edge_index: Tensor) -> Any:
        output = super().forward(x, edge_index)
        return {"values": output, "size": 3, "pair": (output.mean(1), None)}


def graph(seed: int = 0) -> Data:
    torch.manual_seed(seed)
    x = torch.randn(40, 6)
    return Data(x=x, edge_index=torch.randint(0, 40, (2, 160)), y=(x[:, :3] * 2).argmax(1))


def loss(output: Any, batch: Data) -> Tensor:
    return nn.functional.cross_entropy(output["values"] if isinstance(output, dict) else output, batch.y)


def found(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Any = None, **more: Any) -> dict[str, Any]:
    signals, missing = optimizer_signals(model, graph() if batch is None else batch, loss, optimizer, **more)
    return {s.name.removeprefix("optimizer."): s for s in signals} | {"missing": missing}


def bench(model: nn.Module, optimizer: torch.optim.Optimizer) -> Bench:
    batch = graph()
    return Bench(model, optimizer, [((), {"x": batch.x, "edge_index": batch.edge_index})], [batch], loss)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.SGD])
def test_a_rate_that_is_too_high_rises_and_the_advised_one_is_calm(kind: Any) -> None:
    torch.manual_seed(0)
    model = Net()
    high = 30.0 if kind is torch.optim.SGD else 1.0
    optimizer = kind(model.parameters(), lr=high)
    signals = found(model, optimizer)
    rise = signals["loss_rise"]
    assert rise.value > 2
    assert rise.detail["above"] >= 3
    calm = rise.detail["calm_lr"]
    assert 0 < calm <= high / 3
    assert rise.detail["reached"] < rise.detail["first"], "it is one at which the loss comes down"
    again = found(model, kind(model.parameters(), lr=calm))["loss_rise"]
    assert again.value <= 1.25
    assert "calm_lr" not in again.detail


def test_a_calm_rate_that_swings_about_the_first_loss_is_not_the_one_that_is_advised() -> None:
    """Of a quadratic loss, on which momentum at a calm rate may go round and round; a third of it comes down."""

    class Trials:
        def trial(self, steps: int | None = None, *, factor: float = 1.0, until: Any = None, edit: Any = None) -> Trial:
            ends = {1 / 3: 1.0, 1 / 9: 0.2, 1 / 27: 0.6}
            rises = {1 / 3: 1.3, 1: 2.0}.get(factor, 1.0) if steps else {1: 2.0}.get(factor, 1.0)
            end = next((end for at, end in ends.items() if math.isclose(at, factor)), 0.9)
            return Trial((1.0, *[rises] * (rises > 1.25), *[end] * (steps or 6)), 1.0)

    trials: Any = Trials()
    assert calm_rate(trials, 0.9) == pytest.approx(0.3)
    assert _learning_rate(trials, 0.9, 0.3) == (pytest.approx(0.1), 0.2), (
        "more steps at 0.3 rise, and 0.03 comes down less far"
    )


def test_a_usual_rate_is_calm() -> None:
    model = Net()
    signals = found(model, torch.optim.Adam(model.parameters(), lr=1e-3))
    assert signals["loss_rise"].value <= 1
    assert signals["output_move"].value < 1
    assert signals["eps_damping"].value > 0.95


def test_eps_that_is_too_large_keeps_the_output_where_it_is() -> None:
    model = Net()
    assert found(model, torch.optim.Adam(model.parameters(), lr=1e-3, eps=0.1))["eps_damping"].value < 0.3
    assert "eps_damping" not in found(model, torch.optim.SGD(model.parameters(), lr=1e-3))
    assert "eps_damping" not in found(model, torch.optim.Adadelta(model.parameters()))


def test_clipping_makes_large_steps_calm() -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=30.0)
    assert found(model, optimizer, clip=1e-3)["loss_rise"].value < 1.25 < found(model, optimizer)["loss_rise"].value


def test_state_groups_and_settings_are_carried_over() -> None:
    model = Net()
    optimizer = torch.optim.Adam(
        [{"params": model.conv.parameters(), "lr": 1e-3}, {"params": model.head.parameters(), "lr": 1e-2}],
        betas=(0.5, 0.9),
    )
    batch = graph()
    loss(model(batch.x, batch.edge_index), batch).backward()
    optimizer.step()
    twin, moved = twins(model, optimizer)
    assert [g["lr"] for g in moved.param_groups] == [1e-3, 1e-2]
    assert moved.param_groups[0]["betas"] == (0.5, 0.9)
    own, copied = list(model.parameters()), list(twin.parameters())
    assert [p for g in moved.param_groups for p in g["params"]] == [copied[i] for i in range(len(own))]
    assert all(
        torch.equal(optimizer.state[a]["exp_avg"], moved.state[b]["exp_avg"]) for a, b in zip(own, copied, strict=True)
    )
    assert all(optimizer.state[a]["exp_avg"] is not moved.state[b]["exp_avg"] for a, b in zip(own, copied, strict=True))


def test_a_schedule_does_not_move_the_users_weights() -> None:
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    before = copy.deepcopy(model.state_dict())
    found(model, optimizer)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert schedule.last_epoch == 0
    assert optimizer.param_groups[0]["lr"] == 1e-3


def test_nothing_of_the_users_changes() -> None:
    model = Net(dropout=0.5).eval()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.5)
    batch = graph()
    loss(model(batch.x, batch.edge_index), batch).backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    state, given = copy.deepcopy(model.state_dict()), batch.clone()
    torch.manual_seed(7), np.random.seed(7), random.seed(7)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    found(model, optimizer, batch)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()
    assert before[2] == random.getstate()
    assert not model.training
    assert not optimizer.state
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert all(torch.equal(a, p.grad) for a, p in zip(gradients, model.parameters(), strict=True))
    assert torch.equal(given.x, batch.x)


def test_dropout_is_the_same_in_every_look() -> None:
    model = Net(dropout=0.8).train()
    trial = bench(model, torch.optim.SGD(model.parameters(), lr=0.0)).trial()
    assert trial.moved == 0
    assert len(set(trial.losses)) == 1


def test_outputs_may_be_dicts_and_tuples() -> None:
    model = Several()
    assert found(model, torch.optim.Adam(model.parameters(), lr=1e-3))["output_move"].value > 0


class Drawing(Net):
    """Draws a number that nothing is done with."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        torch.rand(1)
        return super().forward(x, edge_index)


@pytest.mark.parametrize("batches", [1, 3])
def test_a_look_is_the_next_steps_forward_where_nothing_is_drawn(batches: int) -> None:
    def losses(kind: type[Net]) -> tuple[tuple[float, ...], int]:
        torch.manual_seed(0)
        model = kind()
        data = [graph(seed) for seed in range(batches)]
        calls = [((), {"x": one.x, "edge_index": one.edge_index}) for one in data]
        trials = Bench(model, torch.optim.Adam(model.parameters(), lr=0.05), calls, data, loss)
        with work(model) as made:
            return trials.trial(5).losses, made["forwards"]

    (plain, fewer), (drawn, more) = losses(Net), losses(Drawing)
    assert plain == drawn
    assert (fewer, more) == (6 * batches, 6 * batches + 5)


def test_several_batches_go_round() -> None:
    model = Net()
    batches = [graph(seed) for seed in range(3)]
    signals = found(model, torch.optim.Adam(model.parameters(), lr=1e-3), batches)
    mean = sum(float(loss(model(b.x, b.edge_index), b).detach()) for b in batches) / 3
    assert signals["loss_rise"].detail["first"] == pytest.approx(mean)


def test_a_shuffling_loader_keeps_batch_and_call_together_and_the_generator() -> None:
    loader = DataLoader([graph(seed) for seed in range(9)], shuffle=True)
    model = Net()
    before = torch.get_rng_state()
    signals = found(model, torch.optim.Adam(model.parameters(), lr=1e-3), loader)
    assert torch.equal(before, torch.get_rng_state())
    assert signals["loss_rise"].value < 1.05


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    model = Net()
    signals = found(model, torch.optim.Adam(model.parameters(), lr=1e-3), precision=dtype)
    assert signals["loss_rise"].value < 1.05
    assert signals["eps_damping"].value > 0.9


def test_frozen_parts_stay() -> None:
    model = Net()
    model.conv.requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    assert found(model, optimizer)["output_move"].value > 0


def test_what_cannot_be_tried_says_why() -> None:
    class Stubborn(Net):
        def __deepcopy__(self, memo: Any) -> Any:
            raise RuntimeError("one of a kind")

    model, other = Stubborn(), Net()
    names = {"optimizer.loss_rise", "optimizer.output_move", "optimizer.eps_damping"}
    adam = torch.optim.Adam(other.parameters())
    cases: list[tuple[Any, Any, Any, str]] = [
        (model, loss, torch.optim.Adam(model.parameters()), "one of a kind"),
        (Net(), loss, adam, "none of the model's"),
        (other, None, adam, "pass loss="),
        (other, loss, None, "pass optimizer="),
        (other, loss, torch.optim.LBFGS(other.parameters()), "LBFGS"),
        (other, lambda output, _: output.sum() * torch.nan, adam, "not finite before"),
        (other, lambda output, _: output, adam, "failed"),
    ]
    for given, objective, optimizer, reason in cases:
        signals, missing = optimizer_signals(given, graph(), objective, optimizer)
        assert signals == []
        assert set(missing) == names
        assert all(reason in why for why in missing.values())


def test_losses_that_are_not_positive_have_no_ratio() -> None:
    model = Net()
    signals, missing = optimizer_signals(
        model, graph(), lambda o, b: loss(o, b) - 5, torch.optim.Adam(model.parameters(), lr=0.5)
    )
    assert "optimizer.loss_rise" not in {s.name for s in signals}
    assert missing == {}


def test_no_rate_is_advised_where_none_is_calm() -> None:
    model = Net()

    def steep(output: Tensor, batch: Data) -> Tensor:
        return loss(output, batch) * 1e30

    one = bench(model, torch.optim.SGD(model.parameters(), lr=1.0))
    steeper = Bench(one.model, one.optimizer, one.calls, one.batches, steep)
    assert calm_rate(steeper, 1.0) != calm_rate(steeper, 1.0)
    with pytest.raises(UsageError, match="trial steps on a copy failed"):
        Bench(one.model, one.optimizer, one.calls, one.batches, lambda o, b: None).trial()  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize("lr", [30.0, 3.0, 1.0])
def test_a_calm_rate_is_found_in_few_forwards_and_is_the_one_that_whole_trials_find(lr: float) -> None:
    model = Net()
    one, asked = bench(model, torch.optim.Adam(model.parameters(), lr=lr)), [0]

    def counted(output: Tensor, batch: Data) -> Tensor:
        asked[0] += 1
        return loss(output, batch)

    counting = replace(one, loss=counted)
    whole = next(lr / 3**n for n in range(1, 9) if one.trial(factor=3.0**-n).calm)
    found = calm_rate(counting, lr)
    assert found == pytest.approx(whole)
    tried = round(math.log(lr / found, 3))
    assert tried > 1
    assert asked[0] < tried * 7, "a rate that is too high is left at its first step that shows it"


def test_change_over_spread() -> None:
    before = torch.tensor([[1.0], [3.0]])
    assert change_over_spread([before], [before + 1]) == pytest.approx(1.0)
    assert change_over_spread([torch.ones(1, 2)], [torch.zeros(1, 2)]) == pytest.approx(1.0)
    assert np.isnan(change_over_spread([torch.ones(4, 2)], [torch.zeros(4, 2)]))


def test_diagnose_judges_rate_and_eps_before_a_run() -> None:
    batch = graph()
    torch.manual_seed(1)
    model = Net()

    def codes(optimizer: torch.optim.Optimizer) -> dict[str, str]:
        diagnosis = gnnstab.diagnose(model, batch=batch, loss=loss, optimizer=optimizer)
        return {f.code: f.message for f in diagnosis.findings if f.code in ("GS601", "GS602")}

    assert codes(torch.optim.Adam(model.parameters(), lr=1e-3)) == {}
    high = codes(torch.optim.Adam(model.parameters(), lr=1.0))
    assert list(high) == ["GS601"]
    assert "the same steps are calm" in high["GS601"]
    assert list(codes(torch.optim.Adam(model.parameters(), lr=1e-3, eps=0.1))) == ["GS602"]


@pytest.mark.parametrize(("dtype", "lr", "lost"), [(torch.bfloat16, 1e-5, True), (torch.bfloat16, 3e-2, False)])
def test_updates_of_weights_in_16_bits_that_are_rounded_away(dtype: torch.dtype, lr: float, lost: bool) -> None:
    torch.manual_seed(0)
    model, batch = Net().to(dtype), graph()
    batch.x = batch.x.to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    told = gnnstab.diagnose(model, batch=batch, loss=loss, optimizer=optimizer)
    assert [c.cause for c in told.root_causes()] == (["precision"] if lost else [])


def test_weights_in_32_bits_lose_no_update_and_a_warm_up_is_judged_by_its_rate() -> None:
    torch.manual_seed(0)
    model, batch = Net(), graph()
    assert "lost_share" not in found(model, torch.optim.AdamW(model.parameters(), lr=1e-5), batch)
    batch.x = batch.x.bfloat16()
    optimizer = torch.optim.AdamW(model.bfloat16().parameters(), lr=3e-2)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 + step) / 1e5)
    assert found(model, optimizer, batch)["lost_share"].value < 0.5
