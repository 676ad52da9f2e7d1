"""The fp16 crash of the real actor, reproduced stage by stage, and the fixes tried on it."""

import pytest
import torch
from torch import nn

from gnnstab.errors import UsageError
from gnnstab.verification.replay import replay
from gnnstab.verification.wording import replay_text
from models.informarl import load_actor, sample_batch

CRASH = "agents7_lr7e-2_amp16_nan_crash"


def crashing_batch():
    """The first 64 of its graphs; the overflow is among them."""
    return {k: v[:64] for k, v in sample_batch().items()}


@pytest.fixture(scope="module")
def crash():
    fixes = ["fp32-attention", "score-cap", ("fp32-attention", {"only": ["gnn.gnn1", "gnn.gnn2.0"]}), "qk-clip"]
    return replay(load_actor(CRASH), (), crashing_batch(), precision="fp16", fixes=fixes)


def test_the_overflow_is_shown_stage_by_stage(crash):
    assert (crash.event.layer, crash.event.stage, crash.event.origin) == ("gnn.gnn2.1", "score", "made-here")
    stages = [r.stage for r in crash.rows if r.layer == "gnn.gnn2.1"]
    assert stages[:5] == ["input", "query", "key", "value", "edge"]
    bad = [(r.layer, r.stage) for r in crash.rows if r.non_finite]
    assert bad[0] == ("gnn.gnn2.1", "score")
    text = replay_text(crash)
    assert "65504" in text
    assert "fp32-attention: confirmed" in text
    assert "First operation: " in text
    assert "float16 ends at 65504" in crash.operation
    assert "gnn.gnn2.1" in crash.operation


class Encoder(nn.Module):
    """Torch's attention over the rows of a graph."""

    def __init__(self, weights):
        super().__init__()
        self.attn, self.weights = nn.MultiheadAttention(8, 2, batch_first=True), weights

    def forward(self, x, mask=None):
        return self.attn(x, x, x, key_padding_mask=mask, need_weights=self.weights)[0]


@pytest.mark.parametrize("weights", [True, False])
def test_torchs_attention_has_its_stages_and_a_mask_is_no_failure(weights):
    torch.manual_seed(0)
    model, x = Encoder(weights), torch.randn(3, 5, 8)
    mask = torch.zeros(3, 5, dtype=torch.bool)
    mask[:, 3:] = True
    sound = replay(model, (), {"x": x, "mask": mask})
    assert sound.event is None
    assert [row.stage for row in sound.rows if row.layer == "attn"] == ["score", "attention", "output"]
    assert not any(row.non_finite for row in sound.rows)
    (score,) = (row for row in sound.rows if row.stage == "score")
    assert score.maximum < 10
    with torch.no_grad():
        model.attn.in_proj_weight[:16] *= 1e25
    broken = replay(model, (), {"x": x, "mask": mask})
    assert (broken.event.layer, broken.event.stage, broken.event.origin) == ("attn", "score", "made-here")


def test_only_what_reaches_the_failing_layer_helps(crash):
    verdicts = [t.verdict for t in crash.tried]
    # A cap comes after q·k, which has overflowed by then; fp32 in the other layers leaves this one as it is.
    assert verdicts == ["confirmed", "no-effect", "no-effect", "confirmed"]


def test_in_fp32_there_is_nothing_to_replay():
    found = replay(load_actor(CRASH), (), crashing_batch())
    assert found.event is None
    assert found.tried == ()
    assert "finite" in replay_text(found)


def test_structural_fixes_prove_nothing_on_these_weights():
    with pytest.raises(UsageError, match="use gnnstab verify"):
        replay(load_actor(CRASH), (), crashing_batch(), precision="fp16", fixes="qk-norm")
