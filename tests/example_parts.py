"""Building blocks of the example diagnoses: rule statuses, layers, signals, series, findings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gnnstab.records import Cause, Finding, FixAdvice, LayerFacts, RuleStatus, Series, Signal

RULES = {
    "GS101": "no-dropout",
    "GS102": "beta-disabled",
    "GS103": "no-residual",
    "GS104": "gate-saturated",
    "GS105": "dropout-on-sparse-neighbourhood",
    "GS106": "post-norm-without-identity",
    "GS107": "beta-silently-off",
    "GS108": "graph-norm-hazard",
    "GS201": "unstable-init-gain",
    "GS202": "init-missed-convolutions",
    "GS203": "vanishing-gradient",
    "GS204": "exploding-gradient",
    "GS301": "attention-explosion",
    "GS302": "attention-saturated-by-input",
    "GS303": "logit-bound",
    "GS304": "attention-unused",
    "GS401": "sum-aggregation-growth",
    "GS402": "isolated-nodes",
    "GS403": "hub-dilution",
    "GS404": "no-self-term",
    "GS405": "degree-one-attention",
    "GS406": "feature-scale",
    "GS407": "constant-or-non-finite-feature",
    "GS501": "precision-headroom",
    "GS502": "non-finite-value",
    "GS503": "underflow",
    "GS601": "learning-rate-too-high",
    "GS602": "adam-epsilon-dominates",
    "GS603": "gradient-spike",
    "GS604": "never-updated-parameter",
    "GS701": "dead-units",
    "GS702": "saturated-tanh",
    "GS703": "active-clamp",
    "GS704": "oversmoothing",
    "GS901": "blind-layer",
    "GS902": "tool-failure",
    "GS903": "incomplete-trace",
}

HEADS = 3

GROWTH = (
    1.0,
    1.051,
    1.105,
    1.162,
    1.221,
    1.284,
    1.35,
    1.419,
    1.492,
    1.568,
    1.649,
    1.733,
    1.822,
    1.916,
    2.014,
    2.117,
    2.226,
    2.34,
    2.46,
    2.586,
    2.718,
    2.858,
    3.004,
    3.158,
    3.32,
    3.49,
    3.669,
    3.857,
    4.055,
    4.263,
    4.482,
    4.711,
    4.953,
    5.207,
    5.474,
    5.755,
    6.05,
    6.36,
    6.686,
    7.029,
    7.389,
    7.768,
    8.166,
    8.585,
    9.025,
    9.488,
    9.974,
    10.49,
    11.02,
    11.59,
    12.18,
    12.81,
    13.46,
    14.15,
    14.88,
    15.64,
    16.44,
    17.29,
    18.17,
    19.11,
    20.09,
    21.12,
    22.2,
    23.34,
    24.53,
    25.79,
    27.11,
    28.5,
    29.96,
    31.5,
)
"""A quantity that grows 30-fold within 70 steps. A written table: exp differs in the last digit from processor to processor."""

HISTOGRAM_COUNTS = (1, 4, 14, 42, 103, 200, 312, 389, 389, 312, 200, 103, 42, 14, 4, 1)
"""A bell."""

_NEEDS_RUN = "a single batch shows no history; pass a recorded trace (run.gnnstab)"
_CHECKPOINT_CANNOT = "a bare state dict does not hold it; pass --model pkg.mod:factory to make it visible"


def attention_finding(layer: str, head: int | None, entropy: float, severity: str) -> Finding:
    limit = 0.10 if severity == "error" else 0.35
    where = layer if head is None else f"head {head} of {layer}"
    return Finding(
        code="GS301",
        name="attention-explosion",
        cause="attention-explosion",
        severity=severity,
        confidence="high",
        layer=layer,
        head=head,
        step=None,
        signal="attention.entropy",
        value=entropy,
        threshold=limit,
        unit="fraction of ln(in-degree)",
        message=f"Attention of {where} is nearly one-hot: mean entropy {entropy:.3g} of ln(in-degree), limit {limit}. "
        "Scale the query weights of this head down, or normalise q and k.",
    )


def nth_finding(i: int, names: Sequence[str]) -> Finding:
    """Attention, precision and gradient findings spread over layers and heads; each has its own fingerprint."""
    layer, head = names[(i // HEADS) % len(names)], i % HEADS
    kind = (i // (HEADS * len(names))) % 3
    severity = "error" if head == 0 else "warning"
    if kind == 0:
        entropy = (0.09 if severity == "error" else 0.3) - 0.001 * (i % 50)
        return replace(attention_finding(layer, head, entropy, severity), step=1200, explained_by="GS401")
    if kind == 1:
        return Finding(
            "GS501",
            "precision-headroom",
            "precision",
            severity,
            "high",
            layer,
            head,
            1300,
            "precision.rounding",
            0.11 + 0.01 * head,
            0.1,
            "",
            f"Rounding of the scores of head {head} of {layer} in fp16 reaches {0.11 + 0.01 * head:.2g} (limit 0.1). "
            "Compute q·k and softmax in fp32.",
            explained_by="GS301",
        )
    return Finding(
        "GS303",
        "logit-bound",
        "attention-explosion",
        "info",
        "medium",
        layer,
        head,
        None,
        "logit.frobenius",
        2.4 + 0.1 * head,
        2.1,
        "logit",
        f"Typical within-target score spread of head {head} of {layer} is {2.4 + 0.1 * head:.2g} at an input of RMS 1.",
    )


def many_causes(names: Sequence[str]) -> tuple[Cause, ...]:
    mean_and_root = (
        "class Embed(MessagePassing):\n    def __init__(self):\n        super().__init__(aggr='mean')\n"
        "        self.lin_root = Linear(16, 16)\n\n    def forward(self, x, edge_index, edge_attr):\n"
        "        return self.propagate(edge_index, x=x, edge_attr=edge_attr) + self.lin_root(x)"
    )
    return (
        Cause(
            "no-dropout",
            "present",
            f"dropout=0.0 on {len(names)} of {len(names)} layers; it would raise the message RMS",
            ("GS101",),
            (
                FixAdvice(
                    "dropout",
                    "TransformerConv(16, 16, heads=3, dropout=0.1)",
                    "no-effect",
                    0.11,
                    0.11,
                    "attention.entropy",
                    "5 paired seeds, 150 steps",
                ),
            ),
        ),
        Cause(
            "beta-disabled",
            "present",
            "beta=False; helps only against growth with depth, which was not measured",
            ("GS102",),
            (
                FixAdvice(
                    "beta",
                    "TransformerConv(16, 16, heads=3, beta=True)",
                    "made-worse",
                    0.11,
                    0.08,
                    "attention.entropy",
                    "5 paired seeds, 150 steps",
                ),
            ),
        ),
        Cause(
            "no-residual",
            "not-evaluable",
            "the trace does not hold the code around the layers; pass --model pkg.mod:factory",
        ),
        Cause(
            "attention-explosion",
            "contributing",
            f"{len(names)} layers with entropy below 0.35; follows from the sum aggregation",
            ("GS301", "GS501"),
            (
                FixAdvice(
                    "query-scaling",
                    "conv.lin_query.weight[0:16] *= 0.07",
                    "inconclusive",
                    0.11,
                    0.41,
                    "attention.entropy",
                    "2 of 5 seeds trained worse",
                ),
            ),
        ),
        Cause("unsuitable-init", "absent", "weights carry PyG's default scale, which shrinks rather than explodes"),
        Cause(
            "sum-aggregation",
            "root-cause",
            "encoder.embed grows as in-degree^0.97; its RMS 9.2 saturates the first attention layer",
            ("GS401", "GS301"),
            (
                FixAdvice(
                    "mean-and-root",
                    mean_and_root,
                    "confirmed",
                    0.11,
                    0.83,
                    "attention.entropy",
                    "5 paired seeds; no rule newly fires; loss 0.41 → 0.12",
                ),
                FixAdvice(
                    "sqrt-degree",
                    "aggr='sum' divided by in_degree.sqrt()",
                    "not-tested",
                    signal="attention.entropy",
                    note="gnnstab verify runs/7agents --fix sqrt-degree",
                ),
            ),
        ),
        Cause("learning-rate", "contributing", "early updates of 18 % per step", ("GS601",)),
        Cause(
            "precision",
            "contributing",
            "fp16: q·k passed 65504 at step 1342",
            ("GS502", "GS501"),
            (
                FixAdvice(
                    "fp32-attention",
                    "with torch.autocast('cuda', enabled=False):\n    x = conv(x.float(), edge_index)",
                    "not-tested",
                    note="gnnstab verify runs/7agents --fix fp32-attention",
                ),
            ),
        ),
    )


def make_rules(fired: dict[str, tuple[str, str]]) -> tuple[RuleStatus, ...]:
    default = {
        "GS6": ("not-evaluable", _NEEDS_RUN),
        "GS105": ("not-applicable", "no layer uses dropout"),
        "GS702": ("not-applicable", "no tanh in the model"),
        "GS603": ("suppressed", "suppressed in pyproject.toml: spikes are expected during warm-up"),
        "GS108": ("not-evaluable", _CHECKPOINT_CANNOT),
    }
    out = []
    for code in RULES:
        status, reason = fired.get(code) or default.get(code) or default.get(code[:3]) or ("passed", "")
        out.append(RuleStatus(code, status, reason))
    return tuple(out)


def make_layers(names: Sequence[str]) -> tuple[LayerFacts, ...]:
    return tuple(
        LayerFacts.of(
            name=name,
            kind="TransformerConv",
            position=i,
            attention=True,
            in_channels=(16, 16),
            out_channels=16,
            heads=HEADS,
            concat=False,
            beta=False,
            beta_requested=False,
            dropout=0.0,
            edge_dim=1,
            root_weight=True,
            bias=True,
            aggregation="add",
            identity_path=None if i == 0 else False,
            norm_before="",
            norm_after="",
            activation="relu",
            initialisation="unknown",
            source_file="models/actor.py:41",
        )
        for i, name in enumerate(names)
    )


def make_signals(
    names: Sequence[str], entropies: Sequence[float], one_hot: Sequence[float], scores: Sequence[float]
) -> tuple[Signal, ...]:
    out: list[Signal] = []
    for i, name in enumerate(names):
        for head in (None, *range(HEADS)):
            shift = 1.0 if head is None else 0.9 + 0.1 * head
            entropy, share, score = entropies[i] * shift, one_hot[i] * shift, scores[i] * shift
            out += [
                Signal("attention.entropy", entropy, name, head, detail={"in_degree_median": 9}),
                Signal("attention.one_hot_share", share, name, head),
                Signal("score.max_abs", score, name, head),
                Signal("score.std", score / 5, name, head, detail=histogram(score)),
                Signal("precision.fp16_headroom", 65504 / (4 * score) if score else math.inf, name, head),
                Signal("logit.spectral_qk", 0.15 * (i % 7 + 1) * shift, name, head, source="weights"),
                Signal("logit.frobenius", 0.2 * (i % 7 + 1) * shift, name, head, source="weights"),
            ]
        depth = len(names) - i
        out += [
            Signal("input.rms", 1.0 + 0.1 * (i % 9), name),
            Signal("output.rms", 2.4 / (1 + i % 9), name),
            Signal("gradient.input_rms", 1e-3 / (1 + depth % 40), name),
            Signal("smoothness.relative", 0.9 / (1 + i % 9), name),
        ]
    out += [
        Signal("degree.median", 9.0),
        Signal("degree.max", 16.0),
        Signal("degree.isolated_share", 0.007),
        Signal("gradient.ratio", 0.42),
    ]
    return tuple(replace(signal, value=written(signal.value)) for signal in out)


def written(value: float) -> float:
    """The number as one would write it down: five digits, so that no output that rounds it further meets a tie."""
    return float(f"{value:.5g}")


def histogram(score: float) -> dict[str, list[float]]:
    """A bell of counts over ±score; nothing when the score is not finite."""
    if not math.isfinite(score):
        return {}
    edges = [written(score * (k / 8 - 1)) for k in range(17)]
    return {
        "histogram_edges": edges,
        "histogram_counts": list(HISTOGRAM_COUNTS),
    }


def make_series(names: Sequence[str]) -> tuple[Series, ...]:
    steps = np.arange(0, 1400, 20)
    growth = np.array(GROWTH)
    out = [
        Series("loss", None, None, steps, 2.0 / (1.0 + steps / 100.0)),
        Series("gradient.norm", None, None, steps, 0.3 * growth),
    ]
    for i, name in enumerate(names):
        out.append(Series("score.max_abs", name, None, steps, 5.0 * growth / (1 + i)))
        out.append(Series("attention.entropy", name, None, steps, 0.95 / (1 + steps / (700.0 + 100 * i))))
        out.append(Series("gradient.input_rms", name, None, steps, 1e-3 * growth / (1 + i)))
    return tuple(replace(s, values=np.array([written(value) for value in s.values.tolist()])) for s in out)
