"""Diagnoses rich in evidence, for the tests of the page, the figures and the live view."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from example_parts import cause, fix, found, layer
from gnnstab.records import (
    FIVE_CAUSES,
    Advice,
    Blind,
    Cause,
    Coverage,
    Diagnosis,
    Event,
    Finding,
    FixAdvice,
    LayerFacts,
    RuleStatus,
    Series,
    Signal,
    Target,
)

STEPS = np.arange(0, 401, 5, dtype=np.int64)


def layer_signals(name: str, scale: float, entropy: float, gradient: float, seed: int, heads: int = 3) -> list[Signal]:
    """Everything that one layer may measure: a score histogram per head, entropy, activations, gradients, weights."""
    random = np.random.default_rng(seed)
    signals = [
        Signal("score.max_abs", 4.6 * scale, name),
        Signal("score.min", -4.6 * scale, name),
        Signal("score.max", 3.4 * scale, name),
        Signal("score.std", scale, name),
        Signal("attention.entropy", entropy, name),
        Signal("attention.one_hot_share", max(0.0, 0.6 - entropy), name),
        Signal("input.rms", 1.2 * math.sqrt(scale), name),
        Signal("output.rms", math.sqrt(scale), name),
        Signal("gradient.input_rms", gradient, name),
        Signal("gradient.output_rms", gradient * 1.1, name),
        Signal("precision.fp16_headroom", 65504 / (4.6 * scale * 4 * 180), name),
    ]
    for head in range(heads):
        width = scale * (0.6 + 0.5 * head)
        counts, edges = np.histogram(random.normal(0.2 * width * head, width, 4000), bins=32)
        span = {"low": float(edges[0]), "high": float(edges[-1])}
        signals += [
            Signal("score.std", width, name, head, detail={"histogram": {**span, "counts": counts}}),
            Signal("score.min", float(edges[0]), name, head),
            Signal("score.max", float(edges[-1]), name, head),
            Signal("attention.entropy", min(1.0, entropy * (0.7 + 0.25 * head)), name, head),
            Signal("logit.spectral_qk", 0.2 + 0.1 * head + 0.01 * scale, name, head, source="weights"),
        ]
    return signals


def layer_series(name: str, scale: float, entropy: float, gradient: float) -> list[Series]:
    grow = np.linspace(0.1, 1.0, len(STEPS)) ** 2
    wobble = 1 + 0.06 * np.sin(STEPS / 17.0)
    return [
        Series("score.max_abs", name, None, STEPS, 4.6 * scale * grow * wobble),
        Series("attention.entropy", name, None, STEPS, np.clip(0.98 - (0.98 - entropy) * grow * wobble, 0, 1)),
        Series("output.rms", name, None, STEPS, math.sqrt(scale) * (0.3 + 0.7 * grow) * wobble),
        Series("gradient.input_rms", name, None, STEPS, gradient * (2 - grow) * wobble),
    ]


def overflow(step: int = 375) -> Event:
    said = "first non-finite value: q·k of head 2 passed 65504 in fp16; all weights are finite"
    known = {"limit": 65504, "largest_before": 61240.0, "dtype": "float16", "weights_finite": True}
    layer = "gnn_base.gnn.gnn2.1"
    return Event(step, "non-finite", layer, "train", 0, "score", "made-here", (12, 40), (103, 551), (2,), said, known)


def run() -> Diagnosis:
    """A recorded run of the three-layer, seven-agent network: saturated by a sum aggregation, then an fp16 overflow."""
    names = ("gnn_base.gnn.gnn1", "gnn_base.gnn.gnn2.0", "gnn_base.gnn.gnn2.1")
    shape = ((26.5, 0.229, 2.1e-3), (11.81, 0.457, 3.0e-3), (3.73, 0.813, 4.4e-3))
    signals = [
        s for i, (n, (a, b, c)) in enumerate(zip(names, shape, strict=True)) for s in layer_signals(n, a, b, c, i)
    ]
    signals += [
        Signal("degree.median", 9.0),
        Signal("degree.mean", 9.44),
        Signal("degree.max", 16.0),
        Signal("degree.isolated_share", 0.007),
        Signal("aggregation.exponent", 0.98, "gnn_base.gnn.embed_layer"),
        Signal("aggregation.rms", 11.4, "gnn_base.gnn.embed_layer"),
    ]
    series = [s for n, (a, b, c) in zip(names, shape, strict=True) for s in layer_series(n, a, b, c)]
    loss = 1.6 * np.exp(-STEPS / 90.0) + 0.12 + 0.05 * np.sin(STEPS / 9.0)
    series += [
        Series("loss", None, None, STEPS, loss),
        Series("gradient.norm", None, None, STEPS, 0.8 + 0.5 * np.abs(np.sin(STEPS / 23.0))),
    ]
    blind = Blind("gnn_base.gnn.embed_layer", "score", "not an attention layer: it has no scores")
    return Diagnosis(
        target=Target("trace", "runs/informarl-7agents/run.gnnstab", ("joined 1 rank",)),
        coverage=Coverage(4, 4, (blind,), ("heads=3: read from the layer", "activation=relu: seen in the run")),
        causes=_run_causes(),
        findings=_run_findings(),
        rules=(
            *(RuleStatus(code, "fired") for code in ("GS301", "GS302", "GS401", "GS501", "GS502")),
            RuleStatus("GS203", "passed", "gradient ratio 0.48 within 1e-3 … 1e2"),
            RuleStatus("GS204", "passed"),
            RuleStatus("GS601", "passed", "lr/rms 0.004"),
            RuleStatus("GS104", "not-applicable", "no layer has a gate"),
            RuleStatus("GS108", "not-applicable", "no GraphNorm in the model"),
            RuleStatus("GS602", "not-evaluable", "the optimizer was not given; pass optimizer="),
            RuleStatus("GS405", "passed"),
        ),
        advice=(
            Advice("W1", "add dropout to calm the activations", "dropout raises the RMS of messages: 3.20 → 3.22"),
            Advice("W10", "swap the sum for a mean and nothing else", "removes node identity at in-degree 9.4"),
            Advice("W6", "clamp the scores at 50", "in-degree 9 is one-hot long before 50: entropy 0.229 stays 0.23"),
        ),
        layers=(
            LayerFacts("gnn_base.gnn.embed_layer", "EmbedConv", 0, False, aggregation="add", in_channels=(7, 7)),
            *(layer(n, i + 1) for i, n in enumerate(names)),
        ),
        signals=tuple(signals),
        series=tuple(series),
        events=(overflow(), Event(300, "finding", names[0], message="GS301 raised live")),
        context={"precision": "fp16", "steps": 400, "trained": True},
    )


def _run_findings() -> tuple[Finding, ...]:
    embed, first, third = "gnn_base.gnn.embed_layer", "gnn_base.gnn.gnn1", "gnn_base.gnn.gnn2.1"

    def told(code: str, severity: str, at: Any, number: Any, message: str, **more: str) -> Finding:
        return found(code, severity, at, number, f"{at[0]}: {message}", **more)

    sums = {"explained_by": "GS401"}
    overflows = {"explained_by": "GS501", "cause": "precision"}
    return (
        told("GS401", "error", (embed, None, 400), ("aggregation.exponent", 0.98, 0.4), "it sums without a norm."),
        told("GS301", "warning", (first, None, 400), ("attention.entropy", 0.229, 0.35), "42 % see one node.", **sums),
        told("GS301", "error", (first, 0, 400), ("attention.entropy", 0.08, 0.10), "head 0 is one-hot.", **sums),
        told("GS501", "warning", (third, 2, 375), ("precision.fp16_headroom", 0.93, 1.0), "q·k is 7.0e4.", **sums),
        told("GS502", "error", (third, 2, 375), ("score.max_abs", math.inf, 65504.0), "the first Inf.", **overflows),
        told("GS103", "info", (first, None, None), ("gradient.ratio", 0.48, 1e-3), "there is no identity path."),
    )


def _run_causes() -> tuple[Cause, ...]:
    mean = (
        "class EmbedConv(MessagePassing):\n"
        "    def __init__(self, ...):\n"
        "-       super().__init__(aggr='add')\n"
        "+       super().__init__(aggr='mean')\n"
        "+       self.lin_root = nn.Linear(in_channels, out_channels)\n"
        "    def forward(self, x, edge_index, edge_attr):\n"
        "-       return self.propagate(edge_index, x=x, edge_attr=edge_attr)\n"
        "+       return self.propagate(edge_index, x=x, edge_attr=edge_attr) + self.lin_root(x)"
    )
    gated = "TransformerConv(16, 16, heads=3, concat=False, edge_dim=1, beta=True)"
    scaled = (
        "with torch.no_grad():\n    for h, g in enumerate([0.31, 0.24, 0.19]):\n"
        "        gnn1.lin_query.weight[h * 16:(h + 1) * 16] *= g\n        gnn1.lin_query.bias[h * 16:(h + 1) * 16] *= g"
    )
    wide = "with torch.autocast('cuda', enabled=False):\n    x = conv(x.float(), edge_index, edge_attr.float())"
    untested = FixAdvice("fp32-scores", wide, note="gnnstab verify --fix fp32-scores --model … --batch …")
    reason = "the embedding sums 9.4 messages on average without a norm; its output grows with in-degree^0.98."
    beta = fix("beta", gated, "no-effect 0.229 0.231", "5 paired seeds")
    clip = fix("qk-clip", scaled, "inconclusive 0.229 0.41", "loss 3 % worse on 2 of 5 seeds")
    aggregation = fix("mean-aggregation", mean, "confirmed 0.229 0.71", "5 paired seeds; loss 12 % better")
    return (
        cause("no-dropout", "present", "dropout is 0 in all three layers; no over-fitting was measured.", ""),
        cause("beta-disabled", "present", "beta is off; it would only matter against growth with depth.", "", beta),
        cause("no-residual", "present", "three layers: too shallow for it to matter.", "GS103"),
        cause("attention-explosion", "contributing", "entropy 0.229 follows from the sum in front.", "GS301", clip),
        cause("unsuitable-init", "absent", "all convolution weights are PyG's default at gain 1/√3.", ""),
        cause("sum-aggregation", "root-cause", reason, "GS401 GS301", aggregation),
        cause("precision", "contributing", "fp16 leaves no headroom for scores so large.", "GS501 GS502", untested),
    )


def deep(count: int = 200, findings: int = 500) -> Diagnosis:
    """``count`` layers and ``findings`` findings."""
    names = [f"encoder.blocks.{i}.conv" for i in range(count)]
    signals, series = [], []
    for i, name in enumerate(names):
        gradient = 1e-2 * math.exp(-0.09 * (count - i))
        entropy = 0.95 - 0.9 * (i / max(count - 1, 1)) ** 2
        signals += layer_signals(name, 0.5 + 40.0 * (i / max(count, 1)) ** 3, entropy, gradient, i, heads=4)
        series += layer_series(name, 0.5 + 40.0 * (i / max(count, 1)) ** 3, entropy, gradient)
    kinds = (
        ("GS301", "error", "attention.entropy", 0.05, 0.1),
        ("GS203", "warning", "gradient.input_rms", 1e-9, 1e-4),
        ("GS501", "warning", "precision.fp16_headroom", 0.5, 1.0),
        ("GS103", "info", "gradient.input_rms", 1e-3, 1e-2),
    )
    raised = []
    for k in range(findings):
        (code, severity, signal, value, limit), name = kinds[k % 4], names[(k * 7) % count]
        number = (signal, value * (1 + k / findings), limit)
        raised.append(found(code, severity, (name, k % 3, 400), number, f"{name}: finding number {k}."))
    causes = [Cause(c, "absent", "nothing points to it.") for c in FIVE_CAUSES]
    causes[3] = Cause("attention-explosion", "root-cause", "entropy falls below 0.1 from layer 150 on.", ("GS301",))
    return Diagnosis(
        Target("trace", "deep.gnnstab"),
        Coverage(count, count),
        tuple(causes),
        tuple(raised),
        (RuleStatus("GS301", "fired"),),
        layers=tuple(layer(n, i) for i, n in enumerate(names)),
        signals=tuple(signals),
        series=tuple(series),
        events=tuple(Event(int(s), "note", names[0], message="note") for s in STEPS[::20]),
    )


def all_nan(count: int = 3) -> Diagnosis:
    """Every number is NaN."""
    source = deep(count, count)
    tried = FixAdvice("residual", "x = x + conv(x)", "inconclusive", math.nan, math.nan, "gradient.ratio")
    return replace(
        source,
        causes=tuple(replace(one, fixes=(tried,)) for one in source.causes),
        findings=tuple(replace(finding, value=math.nan, threshold=math.nan) for finding in source.findings),
        signals=tuple(Signal(s.name, math.nan, s.layer, s.head) for s in source.signals),
        series=tuple(replace(s, values=np.full(len(s.steps), np.nan)) for s in source.series),
    )


def single_step(count: int = 1) -> Diagnosis:
    """``count`` layers, one step."""
    source = deep(count, count)
    series = tuple(replace(s, steps=s.steps[-1:], values=s.values[-1:]) for s in source.series)
    return replace(source, series=series, events=())
