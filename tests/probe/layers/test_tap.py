"""Scores are seen exactly where the layer's own softmax receives them, in subclasses too."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch_geometric.utils
from torch import Tensor, nn
from torch_geometric.nn import TransformerConv
from torch_geometric.utils import softmax as edge_softmax

from gnnstab.probe.attaching.softmax_tap import SoftmaxCall, Tap, Untappable
from gnnstab.probe.recorder import Recorder
from gnnstab.trace import TraceWriter
from listening import Listener
from models.convnets import WIDTH, graph

SCORES: list[Tensor] = []
"""What the subclasses below say they gave to softmax."""


class Recording(Listener):
    """A listener that keeps errors, too."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[Exception] = []

    def failed(self, error: Exception) -> None:
        self.errors.append(error)


class Own(TransformerConv):
    """Its own message, with softmax under another name and keyword arguments."""

    def message(self, query_i, key_j, value_j, edge_attr, index, ptr, size_i):  # type: ignore[no-untyped-def]
        score = (query_i * key_j).sum(-1) / math.sqrt(self.out_channels)
        score = 5.0 * torch.tanh(score / 5.0)
        SCORES.append(score)
        return value_j * edge_softmax(src=score, index=index, ptr=ptr, num_nodes=size_i).unsqueeze(-1)


class Normed(TransformerConv):
    """Changes query and key, then lets the parent do the rest."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.norm = nn.LayerNorm(self.out_channels)

    def message(self, query_i, key_j, value_j, edge_attr, index, ptr, size_i):  # type: ignore[no-untyped-def]
        query_i, key_j = self.norm(query_i), self.norm(key_j)
        SCORES.append((query_i * key_j).sum(-1) / math.sqrt(self.out_channels))
        return super().message(query_i, key_j, value_j, edge_attr, index, ptr, size_i)


class Twice(Normed):
    """Two levels above the real one, by the two-argument form."""

    def message(self, query_i, key_j, value_j, edge_attr, index, ptr, size_i):  # type: ignore[no-untyped-def]
        return 2 * super(Twice, self).message(query_i, key_j, value_j, edge_attr, index, ptr, size_i)  # noqa: UP008


class Inherits(TransformerConv):
    """Changes nothing about the message."""


class ThroughModule(TransformerConv):
    """Reaches softmax as an attribute of a module of a package."""

    def message(self, query_i, key_j, value_j, edge_attr, index, ptr, size_i):  # type: ignore[no-untyped-def]
        score = (query_i * key_j).sum(-1)
        return value_j * torch_geometric.utils.softmax(score, index, ptr, size_i).unsqueeze(-1)


class Within(TransformerConv):
    """Imports softmax each time."""

    def message(self, query_i, key_j, value_j, edge_attr, index, ptr, size_i):  # type: ignore[no-untyped-def]
        from torch_geometric.utils import softmax

        return value_j * softmax((query_i * key_j).sum(-1), index, ptr, size_i).unsqueeze(-1)


class WithinModule(TransformerConv):
    """Imports the module that holds it, under another name, and another one beside it."""

    def message(self, query_i, key_j, value_j, edge_attr, index, ptr, size_i):  # type: ignore[no-untyped-def]
        import math as numbers

        import torch_geometric.utils as ops

        score = (query_i * key_j).sum(-1) / numbers.sqrt(2.0)
        return value_j * ops.softmax(score, index, ptr, size_i).unsqueeze(-1)


COUNT = 0


class Counting(TransformerConv):
    """Assigns a global variable, which a twin with its own globals would lose."""

    def message(self, query_i, key_j, value_j, edge_attr, index, ptr, size_i):  # type: ignore[no-untyped-def]
        global COUNT
        COUNT += 1
        return value_j * edge_softmax((query_i * key_j).sum(-1), index, ptr, size_i).unsqueeze(-1)


@pytest.fixture(autouse=True)
def _fresh() -> None:
    SCORES.clear()
    torch.manual_seed(0)


@pytest.mark.parametrize("kind", [Own, Normed, Twice])
def test_scores_of_a_subclass_are_its_own(kind: type[TransformerConv]) -> None:
    conv, (x, edge_index, _) = kind(WIDTH, WIDTH, heads=2), graph()
    expected = conv(x, edge_index)
    SCORES.clear()
    listener = Recording()
    tap = Tap.attach(conv, listener)
    assert torch.equal(conv(x, edge_index), expected)
    tap.detach(listener)
    assert "message" not in vars(conv)
    assert len(listener.seen) == len(SCORES) == 1
    assert torch.equal(listener.seen[0].score, SCORES[0])
    weights = edge_softmax(SCORES[0], edge_index[1], num_nodes=len(x))
    assert torch.equal(listener.seen[0].attention, weights)
    assert torch.equal(listener.seen[0].index, edge_index[1])


@pytest.mark.parametrize("kind", [TransformerConv, Inherits])
@pytest.mark.parametrize("edge_dim", [None, 3])
def test_scores_of_the_layer_itself(kind: type[TransformerConv], edge_dim: int | None) -> None:
    conv, (x, edge_index, edge_attr) = kind(WIDTH, WIDTH, heads=2, edge_dim=edge_dim), graph()
    listener = Recording()
    Tap.attach(conv, listener)
    attributes = edge_attr if edge_dim else None
    _, (_, alpha) = conv(x, edge_index, attributes, return_attention_weights=True)
    query, key = (lin(x).view(-1, 2, WIDTH) for lin in (conv.lin_query, conv.lin_key))
    key_j = key[edge_index[0]]
    if edge_dim:
        key_j = key_j + conv.lin_edge(edge_attr).view(-1, 2, WIDTH)
    score = (query[edge_index[1]] * key_j).sum(-1) / math.sqrt(WIDTH)
    assert torch.equal(listener.seen[0].score, score)
    assert torch.equal(listener.seen[0].attention, alpha)
    assert listener.messages[0].shape == (edge_index.shape[1], 2, WIDTH)


@pytest.mark.parametrize("kind", [ThroughModule, Within, WithinModule])
def test_softmax_is_seen_as_an_attribute_of_a_module_and_where_it_is_imported_within(
    kind: type[TransformerConv],
) -> None:
    conv, (x, edge_index, _), listener = kind(WIDTH, WIDTH, heads=2), graph(), Recording()
    expected = conv(x, edge_index)
    tap = Tap.attach(conv, listener)
    assert torch.equal(conv(x, edge_index), expected)
    tap.detach(listener)
    (seen,) = listener.seen
    assert torch.equal(seen.attention, edge_softmax(seen.score, edge_index[1], num_nodes=len(x)))


@pytest.mark.parametrize(("kind", "reason"), [(Counting, "assigns a global")])
def test_what_cannot_be_seen_is_named_and_left_alone(kind: type[TransformerConv], reason: str) -> None:
    conv, (x, edge_index, _) = kind(WIDTH, WIDTH, heads=2), graph()
    with pytest.raises(Untappable, match=reason):
        Tap.attach(conv, Recording())
    expected = conv(x, edge_index)
    with TraceWriter(None) as writer, Recorder(conv, writer) as recorder:
        assert torch.equal(conv(x, edge_index), expected)
        blind = {(b.site, b.reason) for b in recorder.coverage.blind}
    assert {site for site, _ in blind} >= {"score", "attention"}
    assert all(reason in why for site, why in blind if site == "score")


def test_a_failing_listener_is_dropped_and_told() -> None:
    class Failing(Recording):
        def saw(self, seen: SoftmaxCall) -> None:
            raise ValueError("broken")

    conv, (x, edge_index, _) = TransformerConv(WIDTH, WIDTH), graph()
    expected = conv(x, edge_index)
    broken, sound = Failing(), Recording()
    Tap.attach(conv, broken)
    Tap.attach(conv, sound)
    for _ in range(2):
        assert torch.equal(conv(x, edge_index), expected)
    assert len(broken.errors) == 1
    assert len(sound.seen) == 2
