"""The checkpoints of real training runs, against what is known of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from effort import within
from gnnstab.checkpoint import load, rebuild, recover
from gnnstab.checkpoint.facts import CheckpointFacts

SPECTRAL = {
    "healthy_3agents": 0.51,
    "agents7_default": 0.45,
    "agents7_lr7e-3_saturated": 1.57,
    "agents7_lr7e-2_amp16_nan_crash": 1.36,
}
"""Largest ‖W_qᵀW_k‖₂/√C over layers and heads of each actor."""


def _facts(data: Path, name: str) -> CheckpointFacts:
    return recover(load(data / name))


@pytest.mark.parametrize("run", SPECTRAL)
def test_layers_and_largest_norm_of_every_actor(run: str, data: Path) -> None:
    facts = _facts(data, f"{run}/actor.pt")
    assert [layer.name for layer in facts.layers] == [f"gnn_base.gnn.{n}" for n in ("gnn1", "gnn2.0", "gnn2.1")]
    for layer in facts.layers:
        assert (layer.in_channels, layer.out_channels, layer.heads) == ((16, 16), 16, 3)
        assert (layer.concat, layer.edge_dim, layer.get("beta"), layer.bias) == (False, 1, False, True)
    norms = [s.value for s in facts.values if s.name == "logit.spectral_qk" and s.head is not None]
    assert len(norms) == 9
    assert max(norms) == pytest.approx(SPECTRAL[run], abs=0.01)


@pytest.mark.parametrize("run", SPECTRAL)
def test_nothing_in_these_files_is_non_finite(run: str, data: Path) -> None:
    values = [s.value for s in _facts(data, f"{run}/actor.pt").values if s.name == "weight.non_finite"]
    assert len(values) > 50
    assert not any(values)


@pytest.mark.parametrize("run", ["healthy_3agents", "agents7_default"])
def test_running_statistics_of_the_critic_are_no_weights(run: str, data: Path) -> None:
    facts = _facts(data, f"{run}/critic.pt")
    sizes = [s.detail["parameter"] for s in facts.values if s.name == "weight.rms"]
    assert [name for name in sizes if "v_out" in name] == ["v_out.weight"]
    note = next(note for note in facts.notes if "running statistics" in note)
    assert all(name in note for name in ("v_out.mean", "v_out.mean_sq", "v_out.stddev", "v_out.debiasing_term"))
    counted = [s.detail for s in facts.values if s.name == "weight.non_finite" and s.detail.get("statistic")]
    assert "v_out.mean_sq" in [detail["parameter"] for detail in counted]


def test_a_layer_norm_under_two_names_counts_once(data: Path) -> None:
    assert any("2 tensors saved under a second name" in note for note in _facts(data, "agents7_default/actor.pt").notes)


@pytest.mark.parametrize("run", SPECTRAL)
def test_no_initialisation_is_claimed_for_trained_convolutions(run: str, data: Path) -> None:
    facts = _facts(data, f"{run}/actor.pt")
    assert facts.trained is True
    assert {layer.initialisation for layer in facts.layers} == {"unknown"}


def test_what_the_file_cannot_show(data: Path) -> None:
    facts = _facts(data, "agents7_default/actor.pt")
    assert {u.what: u.option for u in facts.undecided} == {
        "dropout": "--model pkg.mod:factory",
        "root_weight": "--model pkg.mod:factory",
        "identity_path": "--model pkg.mod:factory",
        "norm_before": "--model pkg.mod:factory",
        "activation": "--activation NAME",
    }
    assert all(len(u.layers) == 3 for u in facts.undecided)
    assert "heads=3: read from the shapes" in facts.assumptions


def test_load_recover_and_rebuild_are_quick(data: Path) -> None:
    path = data / "agents7_default" / "actor.pt"
    rebuild(recover(load(path)), load(path))
    with within(1):
        checkpoint = load(path)
        rebuilt = rebuild(recover(checkpoint), checkpoint)
        for batch in rebuilt.batches.values():
            rebuilt.model(**batch)


def test_reading_facts_and_signals_needs_no_torch() -> None:
    code = "import sys, gnnstab.checkpoint, gnnstab.checkpoint.facts, gnnstab.signals.weights; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_load_and_recover_need_no_torch_geometric(data: Path) -> None:
    path = str(data / "agents7_default" / "actor.pt")
    code = f"import sys; from gnnstab.checkpoint import load, recover; recover(load({path!r})); sys.exit('torch_geometric' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
