"""Building blocks of the example diagnoses: rule statuses, layers, signals, series, findings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, repeat
from operator import mul
from typing import Any

import numpy as np

from gnnstab import rules
from gnnstab.records import Cause, Finding, FixAdvice, LayerFacts, RuleStatus, Series, Signal
from gnnstab.records.vocabulary import SIGNALS
from gnnstab.rules.registry import rule_class

RULES = {
    rule.code: rule.name
    for rule in rules.RULES
    if rule.code not in ("GS305", "GS408", "GS605", "GS606", "GS607", "GS608", "GS609")
}
"""The rules that the golden files speak of; the six that came later would add nothing but lines."""

HEADS = 3

GROWTH = tuple(float(f"{value:.4g}") for value in accumulate(repeat(1.051271096, 69), mul, initial=1.0))
"""A quantity that grows 30-fold within 70 steps, by multiplication: exp differs in the last digit from processor to processor."""

HISTOGRAM_COUNTS = (1, 4, 14, 42, 103, 200, 312, 389, 389, 312, 200, 103, 42, 14, 4, 1)
"""A bell."""

_NEEDS_RUN = "a single batch shows no history; pass a recorded trace (run.gnnstab)"
_CHECKPOINT_CANNOT = "a bare state dict does not hold it; pass --model pkg.mod:factory to make it visible"


def found(
    code: str,
    severity: str,
    at: tuple[str | None, int | None, int | None],
    number: tuple[str, float, float],
    message: str,
    **more: Any,
) -> Finding:
    """A finding of a built-in rule ``at`` (layer, head, step) by its ``number`` (signal, value, threshold)."""
    rule = rule_class(code)
    given = {"cause": rule.cause, "confidence": "high", "unit": SIGNALS[number[0]].unit, **more}
    cause, confidence, unit = (given.pop(key) for key in ("cause", "confidence", "unit"))
    return Finding(code, rule.name, cause, severity, confidence, *at, *number, unit, message, **given)


def fix(name: str, change: str, told: str, note: str) -> FixAdvice:
    """A fix that was tried: ``told`` is its verdict and the attention entropy before and after, by blanks."""
    verdict, before, after = told.split()
    return FixAdvice(name, change, verdict, float(before), float(after), "attention.entropy", note)


def cause(name: str, status: str, reason: str, codes: str, *fixes: FixAdvice) -> Cause:
    """A cause with the codes of its findings by blanks, and its fixes."""
    return Cause(name, status, reason, tuple(codes.split()), fixes)


def attention_finding(layer: str, head: int | None, entropy: float, severity: str) -> Finding:
    limit = 0.10 if severity == "error" else 0.35
    where = layer if head is None else f"head {head} of {layer}"
    return found(
        "GS301",
        severity,
        (layer, head, None),
        ("attention.entropy", entropy, limit),
        f"Attention of {where} is nearly one-hot: mean entropy {entropy:.3g} of ln(in-degree), limit {limit}. "
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
        return found(
            "GS501",
            severity,
            (layer, head, 1300),
            ("precision.rounding", 0.11 + 0.01 * head, 0.1),
            f"Rounding of the scores of head {head} of {layer} in fp16 reaches {0.11 + 0.01 * head:.2g} (limit 0.1). "
            "Compute q·k and softmax in fp32.",
            explained_by="GS301",
        )
    return found(
        "GS303",
        "info",
        (layer, head, None),
        ("logit.frobenius", 2.4 + 0.1 * head, 2.1),
        f"Typical within-target score spread of head {head} of {layer} is {2.4 + 0.1 * head:.2g} at an input of RMS 1.",
        confidence="medium",
    )


def many_causes(names: Sequence[str]) -> tuple[Cause, ...]:
    mean_and_root = (
        "class Embed(MessagePassing):\n    def __init__(self):\n        super().__init__(aggr='mean')\n"
        "        self.lin_root = Linear(16, 16)\n\n    def forward(self, x, edge_index, edge_attr):\n"
        "        return self.propagate(edge_index, x=x, edge_attr=edge_attr) + self.lin_root(x)"
    )
    return (
        cause(
            "no-dropout",
            "present",
            f"dropout=0.0 on {len(names)} of {len(names)} layers; it would raise the message RMS",
            "GS101",
            fix(
                "dropout",
                "TransformerConv(16, 16, heads=3, dropout=0.1)",
                "no-effect 0.11 0.11",
                "5 paired seeds, 150 steps",
            ),
        ),
        cause(
            "beta-disabled",
            "present",
            "beta=False; helps only against growth with depth, which was not measured",
            "GS102",
            fix(
                "beta",
                "TransformerConv(16, 16, heads=3, beta=True)",
                "made-worse 0.11 0.08",
                "5 paired seeds, 150 steps",
            ),
        ),
        Cause(
            "no-residual",
            "not-evaluable",
            "the trace does not hold the code around the layers; pass --model pkg.mod:factory",
        ),
        cause(
            "attention-explosion",
            "contributing",
            f"{len(names)} layers with entropy below 0.35; follows from the sum aggregation",
            "GS301 GS501",
            fix(
                "query-scaling",
                "conv.lin_query.weight[0:16] *= 0.07",
                "inconclusive 0.11 0.41",
                "2 of 5 seeds trained worse",
            ),
        ),
        Cause("unsuitable-init", "absent", "weights carry PyG's default scale, which shrinks rather than explodes"),
        cause(
            "sum-aggregation",
            "root-cause",
            "encoder.embed grows as in-degree^0.97; its RMS 9.2 saturates the first attention layer",
            "GS401 GS301",
            fix(
                "mean-and-root",
                mean_and_root,
                "confirmed 0.11 0.83",
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
        Cause("learning-rate", "contributing", "early updates of 18 % per step", ("GS601",)),
        cause(
            "precision",
            "contributing",
            "fp16: q·k passed 65504 at step 1342",
            "GS502 GS501",
            FixAdvice(
                "fp32-attention",
                "with torch.autocast('cuda', enabled=False):\n    x = conv(x.float(), edge_index)",
                "not-tested",
                note="gnnstab verify runs/7agents --fix fp32-attention",
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


def layer(name: str, position: int, **more: Any) -> LayerFacts:
    """A TransformerConv of 16 channels and three heads without any of the document's precautions."""
    given: dict[str, Any] = {"activation": "relu", "identity_path": False, "initialisation": "pyg-default"}
    given |= {"aggregation": "add", "norm_before": "", "norm_after": ""}
    given |= {"concat": False, "beta": False, "beta_requested": False, "dropout": 0.0, "edge_dim": 1, **more}
    given |= {"root_weight": True, "bias": True}
    return LayerFacts.of(
        name=name,
        kind="TransformerConv",
        position=position,
        attention=True,
        in_channels=(16, 16),
        out_channels=16,
        heads=HEADS,
        **given,
    )


def make_layers(names: Sequence[str]) -> tuple[LayerFacts, ...]:
    """Layers as a file shows them, around the first of which nothing is known."""
    known = {"initialisation": "unknown", "source_file": "models/actor.py:41"}
    return tuple(layer(name, i, identity_path=None if i == 0 else False, **known) for i, name in enumerate(names))


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
