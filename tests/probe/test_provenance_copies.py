"""The first non-finite value is looked for on a copy: the user's model, its hooks and its generators stay as they are."""

from __future__ import annotations

import copy
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import TransformerConv

from gnnstab.errors import UsageError
from gnnstab.probe.replaying.replica import forked_rng, replica, rng_snapshot
from probe import walked
from probe.walked import Net, locate_non_finite, located, walk

graph, net = pytest.fixture(walked.graph), pytest.fixture(walked.net)


def test_the_model_is_left_as_it_was(graph: Any) -> None:
    class Tap:
        def __init__(self, conv: TransformerConv) -> None:
            self.conv, self.calls = conv, 0

        def __call__(self, **inputs: Any) -> Tensor:
            self.calls += 1
            return TransformerConv.message(self.conv, **inputs)

        def __deepcopy__(self, memo: Any) -> Any:
            raise RuntimeError("must not be copied")

    net = Net(dropout=0.3)
    net.norm = nn.BatchNorm1d(8)
    net.between = net.norm
    net.first.message = tap = Tap(net.first)
    fired: list[str] = []
    net.first.register_forward_hook(lambda *_: fired.append("forward"))
    net.register_forward_pre_hook(refusing_hook(fired))
    net.second.register_message_forward_hook(lambda *_: fired.append("message"))
    state, mode = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    hooks = [len(m._forward_hooks) for m in net.modules()]
    inputs = [t.clone() for t in graph]
    generators = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[union-attr]
    locate_non_finite(net, graph, rng={"cpu": torch.Generator().manual_seed(3).get_state()})
    walk(net, graph)
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert (np.random.get_state()[1] == generators[1]).all()  # type: ignore[index]
    assert random.getstate() == generators[2]
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert [m.training for m in net.modules()] == mode
    assert [len(m._forward_hooks) for m in net.modules()] == hooks
    assert all(torch.equal(a, b) for a, b in zip(inputs, graph, strict=True))
    assert fired == []
    assert tap.calls == 0
    assert net.first.message is tap


def refusing_hook(fired: list[str]) -> Any:
    class Hook:
        def __call__(self, *_: Any) -> None:
            fired.append("pre")

        def __deepcopy__(self, memo: Any) -> Any:
            raise RuntimeError("hooks must not be copied")

    return Hook()


def test_the_generator_state_decides_the_dropout(graph: Any) -> None:
    net = Net(between=nn.Dropout(0.5))
    state = rng_snapshot()
    torch.rand(100)
    rows = [walk(net, graph, rng=state) for _ in range(2)]
    assert rows[0] == rows[1]
    assert rows[0] != walk(net, graph, rng=torch.Generator().manual_seed(99).get_state())


def test_forked_generators_come_back_after_a_failure() -> None:
    def fail() -> None:
        with forked_rng(torch.Generator().manual_seed(1).get_state()):
            torch.rand(3)
            raise ValueError("boom")

    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="boom"):
        fail()
    assert torch.equal(before, torch.get_rng_state())


def test_weight_norm_and_stored_activations_survive_the_copy(graph: Any) -> None:
    net = Net()
    with pytest.warns(FutureWarning):
        net.encode = torch.nn.utils.weight_norm(net.encode)
    net.cache = [net.encode(graph[0])]
    with torch.no_grad():
        net.encode.weight_g.fill_(math.nan)
    event = located(net, graph)
    assert (event.layer, event.origin) == ("encode", "came-in")


def test_a_forward_that_fails_by_itself_says_so(graph: Any) -> None:
    def fail(h: Tensor) -> Tensor:
        raise ValueError("no such thing")

    with pytest.raises(UsageError, match="the replayed forward of Net failed: no such thing"):
        locate_non_finite(Net(between=fail), graph)
    with pytest.raises(UsageError, match="no such thing"):
        walk(Net(between=fail), graph)


def test_a_forward_that_fails_because_of_nan_still_gives_the_table(graph: Any) -> None:
    def check(h: Tensor) -> Tensor:
        if h.isnan().any():
            raise ValueError("NaN")
        return h

    net = Net(between=check)
    with torch.no_grad():
        net.first.lin_skip.bias.fill_(math.nan)
    rows = walk(net, graph)
    assert next(row for row in rows if row.non_finite)[:3] == ("first", 0, "skip")
    assert rows[-1].layer == "activation"


def test_a_model_that_cannot_be_copied_says_so(net: Net, graph: Any) -> None:
    net.handle = (value for value in [1])
    with pytest.raises(UsageError, match="Net cannot be copied for a replay"):
        locate_non_finite(net, graph)


def test_broad_except_clauses_do_not_swallow_the_search(graph: Any) -> None:
    class Stubborn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net(between=lambda h: h / 0)

        def forward(self, *args: Tensor) -> Tensor:
            try:
                return self.net(*args)
            except Exception:
                return args[0]

    event = located(Stubborn(), graph)
    assert event.layer == "net.second"


def test_compiled_models_are_replayed_eagerly_under_their_own_paths(net: Net, graph: Any) -> None:
    compiled = torch.compile(net, backend="eager")
    with torch.no_grad():
        net.second.lin_key.weight[0, 0] = math.nan
    event = located(compiled, graph)
    assert (event.layer, event.stage) == ("_orig_mod.second", "key")
    assert event.layer in dict(compiled.named_modules())


def test_empty_graphs_and_models_without_attention_are_fine(net: Net) -> None:
    nothing = torch.zeros(2, 0, dtype=torch.long)
    assert locate_non_finite(net, (torch.randn(3, 4), nothing, torch.zeros(0, 2))) is None
    assert locate_non_finite(net, (torch.zeros(0, 4), nothing, torch.zeros(0, 2))) is None
    assert [row[:3] for row in walk(nn.Linear(2, 2), (torch.ones(1, 2),))] == [(None, 0, "input")]


def test_a_copy_holds_no_hooks(net: Net) -> None:
    net.register_forward_hook(lambda *_: None)
    net.first.register_propagate_forward_hook(lambda *_: None)
    twin = replica(net)
    assert not twin._forward_hooks
    assert not twin.first._propagate_forward_hooks
    assert len(net._forward_hooks) == 1
    assert (
        twin.first.inspector is net.first.inspector
    )  # As large as the rest of a layer, and the same for all of its class.
