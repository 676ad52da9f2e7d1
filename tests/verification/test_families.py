"""verify, ladder, scale and replay on every kind of attention: each ends with a verdict, or says what it needs."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import gnnstab
from gnnstab import fixes
from gnnstab.errors import UsageError
from gnnstab.layers import LAYERS, Layer
from gnnstab.verification.ladder import run_ladder
from gnnstab.verification.replay import replay
from gnnstab.verification.scaling import scale
from layers.cases import CASES, made
from layers.test_other_faces import Net, total

EACH = pytest.mark.parametrize("kind", LAYERS, ids=lambda kind: kind.kind)
FIXES = {
    "scale_scores": "qk-clip",
    "reinitialise": "reinit-qk",
    "dropout": "dropout",
    "rowwise": "graph-norm",
    "stable": "score-cap",
}
"""What a kind can be edited by -> a fix that needs it."""

EVERYWHERE = ("activation-clamp", "reinit-layers")


def loss(out: Any, batch: Any) -> Any:
    return total(out)


def saturated(kind: Layer) -> tuple[Net, tuple[Any, ...]]:
    """A model of one layer whose scores are far too large, where its weights can do that."""
    case = next(c for c in reversed(CASES) if c.kind == kind.kind and c.name in ("plain", "learned"))
    layer, arguments = made(case)
    with torch.no_grad():
        if kind.applies("scale_scores"):
            kind.scale_scores(layer, [300.0] * (kind.facts("", layer, 0).heads or 1))
    return Net(layer), arguments


@EACH
def test_verify_applies_what_the_kind_can_be_edited_by_and_refuses_the_rest(kind: Layer) -> None:
    net, arguments = saturated(kind)
    before = copy.deepcopy(net.state_dict())
    wanted = [*FIXES.values(), *EVERYWHERE, "pre-norm-residual", "residual-depth-init"]
    verdicts = {v.fix: v for v in gnnstab.verify(net, wanted, batch=arguments, loss=loss, seeds=1, steps=2)}
    fires = gnnstab.diagnose(net, batch=arguments, loss=loss).findings
    if any(f.severity != "info" for f in fires):
        assert all(verdicts[fix].verdict != "not-tested" for fix in EVERYWHERE)
        for edit, fix in FIXES.items():
            told = verdicts[fix]
            unknown = fix == "graph-norm" and kind.facts("", net.conv, 0).width is None
            assert (told.verdict == "not-tested") != (kind.applies(edit) and not unknown), told.reason
            if fix == "qk-clip" and kind.applies(edit):
                assert told.after < 1 < math.inf
                assert told.verdict != "no-effect"
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@EACH
def test_every_fix_that_applies_leaves_a_model_that_runs(kind: Layer) -> None:
    net, arguments = saturated(kind)
    for edit, fix in [*FIXES.items(), *(("", fix) for fix in EVERYWHERE)]:
        unknown = fix == "graph-norm" and kind.facts("", net.conv, 0).width is None
        if edit and (unknown or not kind.applies(edit)):
            continue
        options = (
            {"scores": {"conv": [9.0] * (kind.facts("", net.conv, 0).heads or 1)}, "degree": 4}
            if fix == "qk-clip"
            else {}
        )
        changed = fixes.apply(net, fix, **options)
        assert total(changed(*arguments)).isfinite()


@EACH
def test_a_ladder_is_climbed(kind: Layer) -> None:
    net, arguments = saturated(kind)
    found = run_ladder(net, batch=arguments, loss=loss, seeds=1, steps=2, sizes=(1.0,))
    assert len(found.rungs) > 1
    assert all(math.isfinite(rung.loss) for rung in found.rungs)


@EACH
def test_it_is_scaled_or_said_what_scale_needs(kind: Layer) -> None:
    net, arguments = saturated(kind)
    run: Callable[[], Any] = lambda: scale(net, batch=arguments, factors=(1.0, 2.0), precisions=("fp32",), seeds=1)  # noqa: E731
    if not kind.rowwise:
        with pytest.raises(UsageError, match="scale needs"):
            run()
        return
    assert {"score.std|conv", "output.rms|conv"} <= set(run().points[0].values)


@EACH
def test_a_bad_step_is_replayed_to_the_layer(kind: Layer) -> None:
    net, arguments = saturated(kind)
    parameter = next(net.conv.parameters())
    with torch.no_grad():
        parameter.fill_(math.inf)
    clip = ("qk-clip",) if kind.applies("scale_scores") else ()
    found = replay(net, arguments, fixes=("activation-clamp", *clip))
    assert found.event is not None
    assert found.event.layer is None or found.event.layer.startswith("conv")
    if kind.fused:
        assert found.event.layer == "conv"
        return
    assert {row.layer for row in found.rows} & {"conv", *(f"conv.{name}" for name, _ in net.conv.named_modules())}


def test_a_copy_with_fresh_weights_draws_torchs_attention_anew() -> None:
    from gnnstab.verification._fresh_copies import fresh_twin

    layer = nn.MultiheadAttention(6, 3)
    twin = fresh_twin(layer, 0)
    assert not torch.equal(twin.in_proj_weight, layer.in_proj_weight)
