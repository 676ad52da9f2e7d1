"""The identity path from outside against the same network with the residual written in its forward."""

import pytest
import torch

from gnnstab import fixes
from gnnstab.errors import FixError
from models.informarl import Actor, sample_batch
from models.stacks import Hetero, Stack, hetero_batch, random_batch, transformed


def written_by_hand(model, weight, x, edge_index, norm=False):
    """x ← act(conv(x)) + weight·x; the last identity goes in before the activation."""
    last = len(model.convs) - 1
    for number, conv in enumerate(model.convs):
        inner = torch.layer_norm(x, x.shape[-1:]) if norm else x
        identity = weight * x
        new = conv(inner, edge_index)
        x = torch.relu(new + identity) if number == last else torch.relu(new) + identity
    return x


@pytest.mark.parametrize("weight", [0.1, 1.0])
@pytest.mark.parametrize("norm", [False, True])
def test_equals_the_residual_written_by_hand(weight, norm):
    model, batch = Stack(5, heads=2, concat=False), random_batch(30)
    changed = fixes.apply(model, "pre-norm-residual" if norm else "residual", weight=weight)
    assert torch.allclose(changed(**batch), written_by_hand(model, weight, **batch, norm=norm), atol=1e-6)


def test_gradients_equal_those_of_the_residual_written_by_hand():
    model, batch = Stack(4), random_batch(30)
    changed = fixes.apply(model, "residual", weight=1.0)
    changed(**batch).square().sum().backward()
    written_by_hand(model, 1.0, **batch).square().sum().backward()
    for one, two in zip(changed.parameters(), model.parameters(), strict=True):
        assert torch.allclose(one.grad, two.grad, rtol=1e-4, atol=1e-5)


def test_nothing_leaks_from_one_graph_to_the_next_nor_after_an_error():
    changed = fixes.apply(Stack(3), "residual", weight=1.0)
    batch = random_batch(20)
    expected = changed(**batch)
    changed(**random_batch(20, seed=5))
    with pytest.raises(RuntimeError):
        changed(batch["x"][:, :3], batch["edge_index"])
    with pytest.raises(IndexError):
        changed(batch["x"][:10], batch["edge_index"])
    assert torch.equal(changed(**batch), expected)


def test_the_three_layers_of_the_actor_form_one_stack():
    actor = Actor()
    stack = fixes.model_structure.stacks(actor)
    assert [[u.name for u in s.units] for s in stack] == [["gnn.gnn1", "gnn.gnn2.0", "gnn.gnn2.1"]]
    assert stack[0].owner is actor.gnn


def test_two_towers_are_two_stacks():
    towers = torch.nn.ModuleDict({"actor": Stack(2), "critic": Stack(3)})
    assert [len(s.units) for s in fixes.model_structure.stacks(towers)] == [2, 3]


def test_a_layer_used_twice_carries_the_identity_each_time():
    class Shared(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = Stack(1).convs[0]

        def forward(self, x, edge_index):
            return self.conv(torch.relu(self.conv(x, edge_index)), edge_index)

    model, batch = Shared(), random_batch(20)
    x, edges = batch["x"], batch["edge_index"]
    changed = fixes.apply(model, "residual", weight=1.0)
    assert torch.allclose(changed(x, edges), model.conv(torch.relu(model.conv(x, edges)) + x, edges), atol=1e-6)


@pytest.mark.parametrize("make", [Hetero, transformed])
def test_node_types_keep_their_own_identity(make):
    """The second layer must see act(layer 1) plus the same type's input of layer 1."""
    torch.manual_seed(0)
    model, batch = make(), hetero_batch()
    arguments = batch if make is Hetero else {k.removesuffix("_dict"): v for k, v in batch.items()}
    changed = fixes.apply(model, "residual", weight=0.5)
    seen = {}
    name, conv = next(
        (n, m)
        for n, m in changed.named_modules()
        if n.endswith(("layers.1.convs.<user___rates___item>", "convs.1.user__rates__item"))
    )
    conv.register_forward_pre_hook(
        lambda m, args, kwargs: seen.update(x=args[0] if args else kwargs["x"]), with_kwargs=True
    )
    plain = {}
    dict(model.named_modules())[name].register_forward_pre_hook(
        lambda m, args, kwargs: plain.update(x=args[0] if args else kwargs["x"]), with_kwargs=True
    )
    model(**arguments)
    changed(**arguments)
    for kind, got, without in zip(("user", "item"), seen["x"], plain["x"], strict=True):
        assert torch.allclose(got, without + 0.5 * batch["x_dict"][kind], atol=1e-6)


def test_neighbour_sampling_slices_the_identity():
    class Sampled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.convs = Stack(2).convs

        def forward(self, x, edge_index, sizes):
            for conv, size in zip(self.convs, sizes, strict=True):
                keep = (edge_index[1] < size) & (edge_index[0] < x.size(0))
                x = torch.relu(conv((x, x[:size]), edge_index[:, keep]))
            return x

    model, batch = Sampled(), random_batch(20)
    x, edges = batch["x"], batch["edge_index"]
    got = fixes.apply(model, "residual", weight=1.0)(x, edges, (12, 5))
    first, second = model.convs
    inner = torch.relu(first((x, x[:12]), edges[:, edges[1] < 12])) + x[:12]
    keep = (edges[1] < 5) & (edges[0] < 12)
    expected = torch.relu(second((inner, inner[:5]), edges[:, keep]) + inner[:5])
    assert torch.allclose(got, expected, atol=1e-6)


def test_activation_checkpointing_is_refused_rather_than_wrong():
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(Stack):
        def forward(self, x, edge_index):
            for conv in self.convs:
                x = torch.relu(checkpoint(conv, x, edge_index, use_reentrant=False))
            return x

    changed, batch = fixes.apply(Checkpointed(2), "residual", weight=1.0), random_batch(20)
    out = changed(batch["x"].requires_grad_(), batch["edge_index"])
    with pytest.raises(FixError, match="checkpointing"):
        out.sum().backward()


def test_traced_by_torch_compile():
    changed, batch = fixes.apply(Stack(3), "pre-norm-residual"), random_batch(20)
    expected = changed(**batch)
    assert torch.allclose(torch.compile(changed, backend="eager")(**batch), expected, atol=1e-6)


def test_widths_that_never_agree_are_refused():
    class Widening(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = Stack(1, 4, heads=2).convs[0], Stack(1, 8, heads=2).convs[0]

    with pytest.raises(FixError, match="same width"):
        fixes.apply(Widening(), "residual")


def test_standardised_actor_leaves_the_entity_column_alone():
    batch = {k: v[:3] for k, v in sample_batch().items()}
    changed = fixes.apply(Actor(), "input-standardisation", batch=batch, argument="node_obs")
    assert changed.input_standardisation.mean[-1] == 0
    assert changed.input_standardisation.std[-1] == 1
    assert changed.input_standardisation.std[:-1].ne(1).all()
    assert torch.equal(batch["node_obs"], sample_batch()["node_obs"][:3])


@pytest.mark.parametrize("name", ["pre-norm-residual", "graph-norm", "activation-clamp"])
def test_a_replica_of_a_changed_copy_computes_what_the_copy_computes(name):
    from gnnstab.probe.replaying.replica import replica

    torch.manual_seed(0)
    changed, batch = (
        fixes.apply(Stack(3), name, **({"limit": 0.3} if name == "activation-clamp" else {})),
        random_batch(20),
    )
    assert torch.equal(replica(changed)(**batch), changed(**batch))
