"""The network written anew computes what the real one computed."""

import pytest
import torch

import gnnstab
from effort import work
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


def test_a_diagnosis_with_trial_steps_takes_one_forward_a_step_and_a_dozen_for_all_else() -> None:
    actor, batch = load_actor("agents7_default"), sample_batch(7)
    optimizer = torch.optim.Adam(actor.parameters(), lr=7e-4, eps=1e-5)
    with work(actor) as made:
        found = gnnstab.diagnose(actor, batch=batch, loss=lambda output: output.square().mean(), optimizer=optimizer)
    assert "optimizer.softer" in {signal.name for signal in found.signals}
    # 6 steps for the rate, 1 without eps, 30 each with attention as it is, softened, and for half of the rows.
    assert made["steps"] == 97
    assert made["backwards"] <= 97 + 8
    assert made["forwards"] <= 97 + 18
