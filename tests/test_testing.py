"""`assert_stable`: what it lets pass, what it says, and what it does not take for health."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.nn import TransformerConv

import examples
from gnnstab.baseline import dump
from gnnstab.testing import assert_stable, codes, require


class Network(torch.nn.Module):
    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = TransformerConv(8, 8, heads=2, concat=False)
        self.out = torch.nn.Linear(8, 1)
        with torch.no_grad():
            self.conv.lin_query.weight[8:] *= gain
            self.conv.lin_key.weight[8:] *= gain

    def forward(self, data: Data) -> torch.Tensor:
        return self.out(self.conv(data.x, data.edge_index).relu())


@pytest.fixture
def batch() -> Data:
    generator = torch.Generator().manual_seed(1)
    pairs = torch.cartesian_prod(torch.arange(10), torch.arange(10))
    return Data(x=torch.randn(10, 8, generator=generator), edge_index=pairs[pairs[:, 0] != pairs[:, 1]].t())


def test_a_healthy_model_passes(batch: Data) -> None:
    diagnosis = assert_stable(Network(), batch, budgets=["max score 20", "min entropy 0.5"])
    assert diagnosis.findings == diagnosis.at_least("info")


def test_a_saturated_head_fails_by_name(batch: Data) -> None:
    with pytest.raises(AssertionError) as caught:
        assert_stable(Network(gain=20.0), batch, select="GS3")
    text = str(caught.value)
    assert text.startswith("UNSTABLE: ")
    assert "GS30" in text
    assert "conv" in text
    assert "of head 1" in text and "0.00 in head 1" in text
    assert "logit.frobenius" in text


def test_a_broken_budget_fails_with_layer_head_and_number(batch: Data) -> None:
    with pytest.raises(AssertionError, match=r"budget min entropy 0.9: .*conv, head 1: attention.entropy is 0\.\d+"):
        assert_stable(Network(gain=4.0), batch, fail_on="error", budgets=["min entropy 0.9"])


def test_known_findings_do_not_fail(batch: Data, tmp_path) -> None:
    known = tmp_path / "known.json"
    with pytest.raises(AssertionError):
        assert_stable(Network(gain=20.0), batch)
    from gnnstab.diagnosis import diagnose

    known.write_text(dump([diagnose(Network(gain=20.0), batch=batch)]))
    assert assert_stable(Network(gain=20.0), batch, baseline=known).suppressed


def test_fail_on() -> None:
    require(examples.one_finding(), fail_on="error")
    with pytest.raises(
        AssertionError,
        match=r"warning GS301 attention-explosion at gnn_base.gnn.gnn1, all heads \(worst head 0: 0.206\): attention.entropy 0.229",
    ):
        require(examples.one_finding())


def test_the_other_layers_of_a_rule_are_named() -> None:
    one = examples.one_finding()
    (found,) = one.findings
    two = replace(one, findings=(found, replace(found, layer="z.a"), replace(found, layer="z.b")))
    with pytest.raises(AssertionError, match=r"at z.a, and at z.b, gnn_base.gnn.gnn1: attention.entropy"):
        require(two)
    twice = replace(one, findings=(found, replace(found, head=1)))
    with pytest.raises(AssertionError, match=r" and 1 more: attention.entropy"):
        require(twice)


def test_nothing_evaluable_is_no_health() -> None:
    with pytest.raises(AssertionError, match="nothing could be judged"):
        require(
            replace(examples.clean(), rules=tuple(r for r in examples.clean().rules if r.status == "not-evaluable"))
        )


def test_many_findings_are_cut_and_hostile_names_are_text() -> None:
    with pytest.raises(AssertionError, match=r"and \d+ more") as caught:
        require(examples.many_findings(500, 200), fail_on="info")
    assert len(str(caught.value).splitlines()) <= 15
    with pytest.raises(AssertionError) as caught:
        require(examples.hostile_names())
    assert all(c == "\n" or c.isprintable() for c in str(caught.value))


def test_codes() -> None:
    assert codes(None) is None
    assert codes("gs3, GS401") == ("GS3", "GS401")
    assert codes(["gs3"]) == ("GS3",)


def test_a_failure_shows_the_line_of_the_test_alone(batch: Data) -> None:
    with pytest.raises(AssertionError) as failed:
        assert_stable(Network(gain=20.0), batch, select="GS3")
    shown = [entry for entry in failed.traceback if not entry.ishidden(failed)]
    assert [entry.path.name for entry in shown] == ["test_testing.py"]


def test_a_failure_fits_a_screen_and_names_the_worst_of_each_budget(batch: Data) -> None:
    class Deep(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.nets = torch.nn.ModuleList(Network(gain=4.0 + number) for number in range(8))

        def forward(self, data: Data) -> torch.Tensor:
            return sum(net(data) for net in self.nets)

    with pytest.raises(AssertionError) as caught:
        assert_stable(Deep(), batch, budgets=["min entropy 0.95", "max score 0.1"])
    lines = str(caught.value).splitlines()
    assert len(lines) <= 15
    entropy = next(line for line in lines if line.startswith("budget min entropy"))
    assert "nets.7.conv, head 1" in entropy
    assert entropy.endswith("(and at 15 more places)")
