"""Diagnoses to test reports with: clean, one finding, many findings, NaN values, hostile names.

Every number is written down or made of written ones by the four basic operations, which IEEE 754 rounds alike on every
machine; exp, pow and their like it does not.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from example_parts import (
    attention_finding,
    cause,
    fix,
    found,
    make_layers,
    make_rules,
    make_series,
    make_signals,
    many_causes,
    nth_finding,
)
from gnnstab.characters import counted
from gnnstab.records import (
    FIVE_CAUSES,
    Advice,
    Blind,
    Cause,
    Coverage,
    Diagnosis,
    Event,
    Series,
    Target,
)

INFORMARL_LAYERS = ("gnn_base.gnn.gnn1", "gnn_base.gnn.gnn2.0", "gnn_base.gnn.gnn2.1")


def clean() -> Diagnosis:
    """A healthy three-layer network on its own batch."""
    entropies = (0.476, 0.620, 0.991)
    one_hot = (0.148, 0.070, 0.000)
    scores = (39.8, 27.4, 2.0)
    return Diagnosis(
        target=Target("model", "checkpoints/healthy_3agents/actor.pt", ("state dict joined with model actor:make",)),
        coverage=Coverage(
            3, 3, assumptions=("heads=3: given", "loss: synthetic objective (mean square of the output)")
        ),
        causes=(
            cause(
                "no-dropout",
                "present",
                "dropout=0.0 on 3 of 3 layers; no instability measured that it would cure",
                "GS101",
            ),
            cause(
                "beta-disabled",
                "present",
                "beta=False on 3 of 3 layers; gradients reach the first layer (ratio 0.42)",
                "GS102",
            ),
            cause(
                "no-residual",
                "present",
                "only the linear skip (root_weight=True); 3 layers need no identity path",
                "GS103",
            ),
            Cause("attention-explosion", "absent", "mean attention entropy 0.476 or more in every layer (limit 0.35)"),
            Cause("unsuitable-init", "absent", "log gain per layer in [-0.62, -0.18]; 3 layers stay within limits"),
        ),
        findings=(),
        rules=make_rules({}),
        layers=make_layers(INFORMARL_LAYERS),
        signals=make_signals(INFORMARL_LAYERS, entropies, one_hot, scores),
        context={"precision": "fp32", "steps": 0, "loss_given": False},
    )


def one_finding() -> Diagnosis:
    """Attention of the first layer largely one-hot, one warning, seen in a checkpoint with a batch."""
    finding = attention_finding(INFORMARL_LAYERS[0], None, 0.229, "warning")
    base = clean()
    causes = [replace(c) for c in base.causes]
    causes[3] = cause(
        "attention-explosion",
        "root-cause",
        "mean attention entropy 0.229 of ln(in-degree) at gnn_base.gnn.gnn1 (limit 0.35), also at input RMS 1 (0.241)",
        "GS301",
        fix(
            "query-scaling",
            "with torch.no_grad():\n    conv = model.gnn_base.gnn.gnn1\n    conv.lin_query.weight[0:16] *= 0.071\n"
            "    conv.lin_query.bias[0:16] *= 0.071",
            "confirmed 0.229 0.583",
            "current weights, 5 seeds, 150 steps on the given batch; output RMS changes by 8 %",
        ),
    )
    return replace(
        base,
        target=Target("model", "checkpoints/agents7/actor.pt", ("state dict joined with model actor:make",)),
        causes=tuple(causes),
        findings=(finding,),
        rules=make_rules({"GS301": ("fired", "1 finding")}),
        signals=make_signals(INFORMARL_LAYERS, (0.229, 0.457, 0.813), (0.423, 0.179, 0.011), (130.7, 97.5, 27.5)),
    )


def many_findings(findings: int = 24, layers: int = 6) -> Diagnosis:
    """A saturating training run: root cause outside the five, several symptoms, advice, a series, an event.

    ``many_findings(500, 200)`` is the size at which a report must still be usable.
    """
    names = tuple(f"encoder.blocks.{i}.attention" for i in range(layers))
    heads_used = [nth_finding(i, names) for i in range(findings - 4)]
    head = (
        found(
            "GS401",
            "error",
            ("encoder.embed", None, 1200),
            ("aggregation.exponent", 0.97, 0.4),
            "The sum aggregation of encoder.embed grows as in-degree^0.97 (limit 0.4) and feeds RMS 9.2 into "
            "encoder.blocks.0.attention. Use aggr='mean' together with a root term.",
        ),
        found(
            "GS502",
            "error",
            (names[-1], 1, 1342),
            ("score.max_abs", math.inf, 65504.0),
            f"First non-finite value at step 1342: {names[-1]}, stage score, head 1, made here while all weights "
            "are finite. q·k passed 65504, the largest fp16 number. Compute q·k and softmax in fp32.",
            cause="precision",
            explained_by="GS401",
        ),
        found(
            "GS601",
            "warning",
            (names[0], None, 12),
            ("update.ratio", 0.18, 0.1),
            f"Early updates move lin_value.weight of {names[0]} by 18 % per step (limit 10 %). "
            "Lower lr from 0.007 to 0.002.",
            confidence="medium",
        ),
        found(
            "GS405",
            "info",
            (None, None, None),
            ("degree.at_most_one_share", 0.93, 0.9),
            "93 % of the targets have in-degree 0 or 1: their attention weights are constant.",
            cause="isolated-nodes",
        ),
    )
    fired = sorted({f.code for f in (*head, *heads_used)})
    entropies = [max(0.02, 0.9 - 0.8 / (1 + i)) for i in range(layers)]
    return Diagnosis(
        target=Target("trace", "runs/7agents/run.gnnstab", ("2 ranks merged", "steps 0-999 kept at half resolution")),
        coverage=Coverage(
            layers + 1,
            layers,
            (Blind("decoder.fused", "score", "the fused path runs no message hooks; call it with fuse=False"),),
            ("heads=3: seen in the model", "in-degree taken from the recorded batches"),
        ),
        causes=many_causes(names),
        findings=(*head, *heads_used),
        rules=make_rules(
            {c: ("fired", counted(sum(f.code == c for f in (*head, *heads_used)), "finding")) for c in fired}
        ),
        advice=(
            Advice(
                "W1",
                "add dropout=0.1",
                "dropout raises the RMS of the messages by a factor 1.05; the scores stay at 130",
            ),
            Advice(
                "W8",
                "treat beta, residual and initialisation first",
                "the sum aggregation feeds the attention; exponent 0.97 stays with each of them",
            ),
            Advice("W6", "clamp the scores at 50", "at in-degree 10 the entropy is 0.16 with and without the clamp"),
            Advice(
                "W10",
                "swap add for mean alone",
                "mean without a root term loses the node's own state (R² 0.09 to -0.04)",
            ),
        ),
        layers=make_layers(names),
        signals=make_signals(
            names,
            entropies,
            [max(0.0, 0.9 - e) for e in entropies],
            [15.0 * (1 + 8 / (1 + i)) for i in range(layers)],
        ),
        series=make_series(names[: min(layers, 20)]),
        events=(
            Event(
                1342,
                "non-finite",
                names[-1],
                "train",
                0,
                "score",
                "made-here",
                (3, 17),
                (12, 40, 41),
                (1,),
                f"score of {names[-1]} became inf",
                {"weights_finite": True, "largest_before": 64110.0, "limit": 65504.0, "dtype": "fp16"},
            ),
            Event(1343, "note", None, "train", message="GradScaler skipped the step"),
        ),
        context={"precision": "fp16", "steps": 1400, "loss_given": True},
    )


def nan_values() -> Diagnosis:
    """Non-finite numbers in every place that holds a number."""
    base = one_finding()
    finding = replace(
        base.findings[0],
        code="GS502",
        name="non-finite-value",
        cause="precision",
        severity="error",
        head=2,
        step=17,
        signal="score.max_abs",
        value=math.nan,
        threshold=math.inf,
        unit="logit",
        message="gnn_base.gnn.gnn2.1 produced NaN at stage score, head 2, step 17, made here.",
        layer=INFORMARL_LAYERS[2],
    )
    second = replace(finding, layer=INFORMARL_LAYERS[1], head=None, value=-math.inf, threshold=math.nan)
    causes = [
        replace(c, fixes=tuple(replace(f, before=math.nan, after=-math.inf, verdict="inconclusive") for f in c.fixes))
        for c in base.causes
    ]
    return replace(
        base,
        causes=(*causes, Cause("precision", "root-cause", "q·k passed 65504 in fp16", ("GS502",))),
        findings=(finding, second),
        rules=make_rules({"GS502": ("fired", "2 findings"), "GS301": ("not-evaluable", "every score is NaN")}),
        signals=make_signals(
            INFORMARL_LAYERS, (0.5, math.nan, math.nan), (0.1, math.nan, math.inf), (8.0, math.inf, -math.inf)
        ),
        series=(
            Series(
                "score.max_abs", INFORMARL_LAYERS[2], None, np.array([0, 10, 17]), np.array([40.0, math.inf, math.nan])
            ),
            Series("loss", None, None, np.array([0, 10, 17]), np.array([math.nan] * 3)),
        ),
        events=(
            Event(
                17,
                "non-finite",
                INFORMARL_LAYERS[2],
                "train",
                0,
                "score",
                "made-here",
                (5,),
                (1, 2),
                (2,),
                "score became nan",
                {"weights_finite": True, "largest_before": math.inf},
            ),
        ),
        context={"precision": "fp16", "losses": (math.inf,)},
    )


HOSTILE_NAMES = (
    "<img src=x onerror=alert(1)>",
    "<script>document.title='owned'</script>",
    "\"double\" 'single' `backtick` \\backslash",
    "a]]>b<!--c--><?d?>&amp;&#0;",
    "[bold red]markup[/bold red] [link=https://example.org]x[/link] [/]",
    "ansi\x1b[31mred\x1b[0m\x1b]0;title\x07\x9b31m",
    "line\nbreak\r\ncarriage\ttab\x00null\x08bell\x7f",
    "::error file=x::injected%0A,:|table|cell| **bold** _em_ [a](b)",
    "right\u202eto\u2066left\u2069\u200f mark \ufeff",
    "{{ 7 * 7 }} {% raw %} ${jndi} %s %(x)s",
    "lone\ud800surrogate \U0001f600 ünïcödé 層",
    "long." + "x" * 10_000,
)


def hostile_names() -> Diagnosis:
    """Layer names, paths, messages and code that try to break out of every format."""
    findings = tuple(
        replace(
            attention_finding(name, 0, 0.05, "error"),
            message=f"Attention of {name} is one-hot. Scale the queries of {name}.",
        )
        for name in HOSTILE_NAMES
    )
    everything = " ".join(HOSTILE_NAMES[:-1])
    base = one_finding()
    sharp = cause(
        "attention-explosion",
        "root-cause",
        f"entropy 0.05 at {everything}",
        "GS301",
        fix(
            "query-scaling", f"model.get_submodule({everything!r})\n# {everything}", "made-worse 0.05 0.01", everything
        ),
    )
    return replace(
        base,
        target=Target("checkpoint", "runs/" + everything + ".pt", (everything,)),
        coverage=Coverage(13, 12, (Blind(HOSTILE_NAMES[0], "score", everything),), (everything,)),
        causes=tuple(sharp if c.cause == sharp.cause else c for c in base.causes),
        findings=findings,
        rules=make_rules({"GS301": ("fired", everything)}),
        advice=(Advice("W1", everything, everything),),
        layers=make_layers(HOSTILE_NAMES),
        # The endless name is left out here: every signal would repeat it.
        signals=make_signals(HOSTILE_NAMES[:-1], [0.05] * 11, [0.9] * 11, [400.0] * 11),
        series=tuple(
            replace(s, layer=name) for s, name in zip(make_series(HOSTILE_NAMES), HOSTILE_NAMES, strict=False)
        ),
        events=(
            Event(
                3,
                "non-finite",
                HOSTILE_NAMES[4],
                "train",
                0,
                "score",
                "made-here",
                message=everything,
                detail={everything: everything},
            ),
        ),
        context={"precision": everything},
    )


ALL = {
    "clean": clean,
    "one": one_finding,
    "many": many_findings,
    "nan": nan_values,
    "hostile": hostile_names,
}
"""Name of the golden file → example."""


assert set(FIVE_CAUSES) == {c.cause for c in clean().causes}
