"""The network written anew computes what the real one computed."""

import pytest
import torch

from models.informarl import load_actor, reference, sample_batch, stack_graphs


@pytest.mark.parametrize(("agents", "run"), [(3, "healthy_3agents"), (7, "agents7_default")])
def test_outputs_equal_the_real_network(agents: int, run: str) -> None:
    actor, expected = load_actor(run), reference(agents)
    batch = sample_batch(agents)
    x, edge_index, edge_attr = stack_graphs(batch["node_obs"], batch["adj"])
    assert torch.equal(x, expected["x"])
    assert torch.equal(edge_index, expected["edge_index"])
    assert torch.equal(edge_attr, expected["edge_attr"])
    with torch.no_grad():
        torch.testing.assert_close(
            actor.gnn.embed_layer(x, edge_index, edge_attr), expected["embed_output"], rtol=1e-5, atol=1e-5
        )
        torch.testing.assert_close(actor(**batch), expected["gnn_output"], rtol=1e-5, atol=1e-5)
