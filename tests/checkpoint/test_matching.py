"""A checkpoint's tensors go into the user's model, or a clear error says why not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import TransformerConv

from gnnstab.checkpoint import load, load_into
from gnnstab.errors import CheckpointMismatch
from stored import stored


class Graph(nn.Module):
    def __init__(self, width: int = 6, depth: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(3, width)
        self.convs = nn.ModuleList(TransformerConv(width, width, 2, concat=False) for _ in range(depth))


def _state(prefix: str = "", **options: int) -> dict[str, Tensor]:
    torch.manual_seed(9)
    return {prefix + name: tensor for name, tensor in Graph(**options).state_dict().items()}


def _equal(model: nn.Module, tensors: dict[str, Tensor], prefix: str = "") -> bool:
    return all(torch.equal(tensor, tensors[prefix + name]) for name, tensor in model.state_dict().items())


def test_equal_names() -> None:
    model, tensors = Graph(), _state()
    notes = load_into(model, stored(tensors))
    assert _equal(model, tensors)
    assert notes == (f"{len(tensors)} of the model's {len(tensors)} tensors read from the file",)


@pytest.mark.parametrize("prefix", ["gnn_base.gnn.", "net."])
def test_the_file_holds_a_larger_network(prefix: str) -> None:
    tensors = _state(prefix) | {f"head.{i}": torch.zeros(2) for i in range(7)}
    model = Graph()
    notes = " | ".join(load_into(model, stored(tensors)))
    assert _equal(model, tensors, prefix)
    assert f"the file's names begin with '{prefix}'" in notes
    assert "7 only in the file, not used: head.0, head.1, head.2, head.3, head.4, …" in notes


def test_the_model_is_the_larger_one() -> None:
    model = nn.ModuleDict({"policy": Graph(), "head": nn.Linear(6, 2)})
    tensors = _state()
    notes = " | ".join(load_into(model, stored(tensors)))
    assert _equal(model["policy"], tensors)
    assert "the model's names begin with 'policy.'" in notes
    assert "2 only in the model, left as the factory made them: head.weight, head.bias" in notes


def test_a_bare_layer() -> None:
    conv, tensors = TransformerConv(6, 6, 2, concat=False), _state("g.", depth=1)
    load_into(conv, stored(tensors))
    assert torch.equal(conv.lin_key.weight, tensors["g.convs.0.lin_key.weight"])


def test_the_prefix_that_fits_most_convolutions_wins() -> None:
    small = {name: torch.zeros_like(t) for name, t in _state("a.", depth=1).items()}
    tensors, model = small | _state("b."), Graph()
    load_into(model, stored(tensors))
    assert _equal(model, tensors, "b.")


def test_a_given_prefix_decides() -> None:
    tensors = {name: torch.zeros_like(t) for name, t in _state("actor.").items()} | _state("critic.")
    model = Graph()
    load_into(model, stored(tensors), prefix="critic.")
    assert _equal(model, tensors, "critic.")


def test_equal_fits_are_told() -> None:
    tensors = _state("actor.") | _state("critic.")
    notes = load_into(Graph(), stored(tensors))
    assert any("'critic.' fits as well" in note for note in notes)


def test_a_missing_convolution_tensor() -> None:
    tensors = _state()
    del tensors["convs.1.lin_query.weight"]
    model = Graph()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(
        CheckpointMismatch,
        match=r"lacks 1 tensors of attention layers of the model, first convs.1.lin_query.weight \(12, 6\)",
    ):
        load_into(model, stored(tensors))
    assert _equal(model, before)


@pytest.mark.parametrize("name", ["convs.0.lin_key.weight", "embed.weight"])
def test_another_shape(name: str) -> None:
    with pytest.raises(CheckpointMismatch) as caught:
        load_into(Graph(), stored(_state() | {name: torch.zeros(5, 5)}))
    assert all(part in str(caught.value) for part in (name, "(5, 5)", str(tuple(_state()[name].shape))))


@pytest.mark.parametrize("name", ["convs.0.lin_key.weight", "embed.weight"])
def test_weights_that_the_file_does_not_hold_are_not_read(name: str) -> None:
    model = Graph()
    before = {key: t.clone() for key, t in model.state_dict().items()}
    for empty in (nn.parameter.UninitializedParameter(), nn.parameter.UninitializedBuffer(), _state()[name].to("meta")):
        with pytest.raises(CheckpointMismatch, match=f"{name} cannot be filled from it"):
            load_into(model, stored(_state() | {name: empty}))
    assert _equal(model, before)


def test_nothing_in_common() -> None:
    with pytest.raises(CheckpointMismatch, match="no name of the file fits the model"):
        load_into(Graph(), stored({"a": torch.zeros(3)}))


def test_layers_whose_width_is_not_known_yet() -> None:
    model = nn.ModuleDict({"conv": TransformerConv(-1, 4, 2, concat=False)})
    tensors = {f"conv.{name}": t for name, t in TransformerConv(6, 4, 2, concat=False).state_dict().items()}
    load_into(model, stored(tensors))
    assert torch.equal(model["conv"].lin_key.weight, tensors["conv.lin_key.weight"])


def test_a_real_actor_into_its_graph_part(data: Path) -> None:
    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gnn1 = TransformerConv(16, 16, 3, concat=False, edge_dim=1)
            self.gnn2 = nn.ModuleList(TransformerConv(16, 16, 3, concat=False, edge_dim=1) for _ in range(2))

    model, checkpoint = Part(), load(data / "agents7_default" / "actor.pt")
    notes = load_into(model, checkpoint)
    assert notes[0] == "the file's names begin with 'gnn_base.gnn.'"
    assert _equal(model, dict(checkpoint.tensors), "gnn_base.gnn.")
