"""Recovered layers run again, exactly as the originals, on graphs of known in-degree."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch_geometric.nn import TransformerConv

from gnnstab.checkpoint import rebuild, recover
from gnnstab.checkpoint._rebuilding import IN_DEGREES
from stored import stored

CASES: dict[str, dict[str, Any]] = {
    "averaged heads, edges": {"in_channels": 6, "out_channels": 4, "heads": 3, "concat": False, "edge_dim": 2},
    "gate": {"in_channels": 6, "out_channels": 4, "heads": 2, "concat": False, "beta": True},
    "concatenated": {"in_channels": 6, "out_channels": 4, "heads": 2},
    "bipartite": {"in_channels": (5, 7), "out_channels": 4, "heads": 2, "concat": False},
    "no bias": {"in_channels": 6, "out_channels": 4, "heads": 2, "concat": False, "bias": False},
}


@pytest.mark.parametrize("case", CASES)
def test_a_rebuilt_layer_computes_what_the_original_does(case: str) -> None:
    torch.manual_seed(0)
    original = TransformerConv(**CASES[case]).eval()
    checkpoint = stored(nn.ModuleDict({"a": nn.ModuleDict({"conv": original})}))
    model, batches = rebuild(recover(checkpoint, heads=CASES[case]["heads"]), checkpoint)
    assert tuple(batches) == IN_DEGREES
    for batch in batches.values():
        output = model(**batch)["a.conv"]
        expected = original(batch["inputs"]["a.conv"], batch["edge_index"], batch["edge_attr"].get("a.conv"))
        assert torch.equal(output, expected)


def test_the_graphs_and_inputs_are_what_they_claim() -> None:
    layers = [TransformerConv(6, 4, heads=3, concat=False, edge_dim=2), TransformerConv((5, 7), 4, 2, concat=False)]
    checkpoint = stored(nn.ModuleList(layers))
    _, batches = rebuild(recover(checkpoint), checkpoint)
    for degree, batch in batches.items():
        source, target = batch["edge_index"]
        assert (torch.bincount(target) == degree).all()
        assert (source != target).all()
        assert len({*zip(source.tolist(), target.tolist(), strict=True)}) == source.numel()
        for x in [x for pair in batch["inputs"].values() for x in pair] + list(batch["edge_attr"].values()):
            assert float(x.square().mean().sqrt()) == pytest.approx(1.0, abs=1e-6)
        assert [x.shape[1] for x in batch["inputs"]["1"]] == [5, 7]
        assert batch["edge_attr"]["0"].shape == (source.numel(), 2)


def test_layers_keep_their_names_and_the_random_state_is_left_alone() -> None:
    net = nn.ModuleDict({"net": nn.ModuleList(TransformerConv(6, 6, 2, concat=False) for _ in range(3))})
    checkpoint = stored(net)
    facts = recover(checkpoint)
    before = torch.get_rng_state()
    first, second = rebuild(facts, checkpoint), rebuild(facts, checkpoint)
    assert torch.equal(torch.get_rng_state(), before)
    paths = [name for name, module in first.model.named_modules() if isinstance(module, TransformerConv)]
    assert paths == [layer.name for layer in facts.layers]
    assert torch.equal(first.batches[10]["inputs"]["net.0"][0], second.batches[10]["inputs"]["net.0"][0])
    assert not first.model.training
    assert not any(p.requires_grad for p in first.model.parameters())


def test_layers_that_cannot_be_run_are_left_out() -> None:
    broken = TransformerConv(6, 4, 2, concat=False)
    broken.lin_key.weight.data[0, 0] = torch.nan
    good = TransformerConv(6, 4, 2, concat=False)
    checkpoint = stored(nn.ModuleDict({"open": TransformerConv(6, 4, 2), "nan": broken, "good": good}))
    rebuilt = rebuild(recover(checkpoint), checkpoint)
    assert rebuilt and list(rebuilt.model.paths) == ["good"]
    nothing = stored(nn.Linear(3, 3))
    assert not rebuild(recover(nothing), nothing) and rebuild(recover(nothing), nothing).batches == {}


@pytest.mark.parametrize("name", ["", "train", "forward.x", "a..b", "paths", "type", "weird <name>/.0"])
def test_names_that_a_module_cannot_have(name: str) -> None:
    dot = f"{name}." if name else ""
    state = TransformerConv(6, 4, 2, concat=False).state_dict()
    checkpoint = stored({dot + key: tensor for key, tensor in state.items()})
    model, batches = rebuild(recover(checkpoint), checkpoint)
    assert model(**batches[4])[name].shape == (64, 4)


def test_half_precision_weights_are_widened() -> None:
    checkpoint = stored(nn.ModuleDict({"conv": TransformerConv(6, 4, 2, concat=False).half()}))
    model, batches = rebuild(recover(checkpoint), checkpoint)
    assert model(**batches[4])["conv"].dtype == torch.float32
