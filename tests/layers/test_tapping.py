"""Softmax is watched where it stands: nothing of the layer changes, and nothing of the watching stays."""

from __future__ import annotations

import copy
import io
import pickletools
import zipfile
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.utils import softmax

from gnnstab.layers import LAYERS
from gnnstab.probe.attaching.softmax_tap import Tap
from gnnstab.probe.recorder import Recorder
from gnnstab.trace import TraceWriter
from layers.cases import CASES, NODES, Case, called, made, over, watched
from listening import Listener


@over([c for c in CASES if not c.adapter.fused])
def test_a_tap_changes_no_bit_and_leaves_nothing(case: Case) -> None:
    layer, arguments = made(case)
    expected, before = called(layer, arguments), dict(vars(layer))
    output, listener = watched(layer, arguments)
    assert torch.equal(output, expected)
    assert vars(layer).keys() == before.keys()
    assert all(value is before[name] or isinstance(value, Tensor) for name, value in vars(layer).items())
    assert listener.seen
    for seen in listener.seen:
        size = len(output) if seen.size is None else seen.size
        assert torch.equal(softmax(seen.score, seen.index, num_nodes=size), seen.attention)


@over(CASES)
def test_a_copy_made_while_watched_carries_nothing_of_gnnstab(case: Case) -> None:
    layer, arguments = made(case)
    if case.kind == "SuperGATConv":
        layer.eval()  # In training it keeps tensors with a history, which torch does not copy.
    expected = called(layer, arguments)
    model = nn.Sequential(layer)
    with TraceWriter(None) as writer, Recorder(model, writer):
        called(layer, arguments)
        twin, file = copy.deepcopy(model), io.BytesIO()
        torch.save(model, file)
    for found in _reachable(twin):
        assert not type(found).__module__.startswith("gnnstab"), found
        assert not getattr(found, "__module__", "").startswith("gnnstab") or isinstance(found, type), found
    assert b"gnnstab" not in _text(file)
    loaded = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    for clean in (twin[0], loaded[0]):
        assert torch.equal(called(clean, arguments), expected)
        assert torch.equal(called(copy.deepcopy(clean), arguments), expected)


def _reachable(model: nn.Module) -> Iterator[Any]:
    for module in model.modules():
        for name, value in vars(module).items():
            yield value
            if isinstance(value, dict) and name not in ("_modules", "_parameters", "_buffers"):
                yield from value.values()


def _text(file: io.BytesIO) -> bytes:
    with zipfile.ZipFile(io.BytesIO(file.getvalue())) as archive:
        data = next(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
    assert list(pickletools.genops(data))
    return data


class Helper(nn.Module):
    """Calls softmax in a method of its own."""

    def forward(self, score: Tensor, index: Tensor) -> Tensor:
        return softmax(score, index, num_nodes=NODES)


class Elsewhere(nn.Module):
    """A layer whose softmax stands in a method with another name, or in a helper."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place, self.helper = place, Helper()

    def edge_update(self, score: Tensor, index: Tensor) -> Tensor:
        return softmax(score, index, num_nodes=NODES)

    def forward(self, score: Tensor, index: Tensor) -> Tensor:
        return self.helper(score, index) if self.place == "helper.forward" else self.edge_update(score, index=index)


@pytest.mark.parametrize("place", ["edge_update", "helper.forward"])
def test_softmax_is_watched_wherever_the_adapter_says(place: str) -> None:
    class Kind(type(LAYERS[0])):  # type: ignore[misc]
        softmax_in = ("nothing.forward", place)

    layer = Elsewhere(place)
    score, index = torch.randn(30, 2), torch.randint(0, NODES, (30,))
    expected, before = layer(score, index), [dict(vars(m)) for m in layer.modules()]
    listener = Listener()
    tap = Tap.attach(layer, listener, kind=Kind())
    assert torch.equal(layer(score, index), expected)
    assert torch.equal(copy.deepcopy(layer)(score, index), expected)
    tap.detach(listener)
    assert [dict(vars(m)) for m in layer.modules()] == before
    (seen,) = listener.seen
    assert torch.equal(seen.score, score)
    assert torch.equal(seen.attention, expected)
    assert listener.messages == []


def test_a_function_that_the_user_put_into_the_instance_is_run_as_it_is() -> None:
    layer, arguments = made(CASES[0])

    def message(query_i, key_j, value_j, edge_attr, index, ptr, size_i):  # type: ignore[no-untyped-def]
        return value_j * softmax((query_i * key_j).sum(-1), index, ptr, size_i).unsqueeze(-1)

    layer.message = message
    expected = called(layer, arguments)
    output, listener = watched(layer, arguments)
    assert torch.equal(output, expected)
    assert len(listener.seen) == 1
    assert layer.message is message
