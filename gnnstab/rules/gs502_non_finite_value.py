"""GS502 non-finite-value."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from gnnstab.records import Event, Finding, Signals
from gnnstab.rules.base import Rule

FORWARD = ("query", "key", "value", "edge", "score", "attention", "aggregate", "skip", "gate", "output")
"""Stages inside a layer, where finite weights and inputs can still make a non-finite value."""


@dataclass(frozen=True)
class NonFiniteValue(Rule):
    """A value became NaN or infinite.

    ## What it sees
    The first non-finite value of the run: layer, stage (input, query, key, value, edge, score, attention, aggregate, skip,
    gate, output, gradient, weight, loss), step, the nodes and edges, and whether it came in from outside or was made there.
    In a checkpoint: parameters with NaN or Inf.

    ## Why it is unstable
    One +Inf among the logits of a target makes Inf − Inf = NaN in the softmax, the sum over neighbours spreads it by one hop
    per layer, the loss carries it into every weight with the next step. Only the *first* place tells the cause.

    ## What it looks like
    - Input: NaN in the data.
    - Score in fp16 with finite weights: q·k passed 65 504. A GradScaler cannot prevent that.
    - Weights first, finite before: the step was too large.
    - Weights from the first step, or few parameters of a file: memory that was never initialised.

    ## Fix
    By cause: clean the data; keep query, key and softmax in fp32; divide the learning rate by 3 and find what was growing
    before (GS301, GS401, GS601); call `reset_parameters()`.

    ## When it is wrong
    Non-finite *gradients* in the first steps of a GradScaler are normal: the step is skipped and the scale lowered. Such
    steps are not reported.

    ## References
    Micikevicius et al. 2018, *Mixed Precision Training*, arXiv 1710.03740; IEEE 754. Measured: fp16 training of a real actor,
    first non-finite value in q·k of the third layer with all weights finite.
    """

    code: ClassVar[str] = "GS502"
    name: ClassVar[str] = "non-finite-value"
    cause: ClassVar[str] = "precision"
    severity: ClassVar[str] = "error"
    confidence: ClassVar[str] = "high"

    def check(self, signals: Signals) -> Iterator[Finding]:
        """Error for the first non-finite event, else for non-finite parameters."""
        events = [event for event in signals.events if event.kind == "non-finite"]
        if events:
            yield self._event(signals, min(events, key=_order), len(events))
            return
        bad = [s for s in signals.find("weight.non_finite") if s.value > 0 and s.layer is not None]
        if bad:
            parameters = [str(s.detail.get("parameter", s.layer)) for s in bad]
            cause, why = self._weights_cause(signals, len(bad))
            yield self.finding(
                f"{len(bad)} parameters hold NaN or Inf ({', '.join(parameters[:3])}{', …' if len(bad) > 3 else ''}): {why}.",
                severity="error",
                limit=0.0,
                signal=bad[0],
                cause=cause,
            )
        elif not signals.find("weight.non_finite") and not signals.attention_layers:
            signals.need("weight.non_finite")

    def _event(self, signals: Signals, event: Event, total: int) -> Finding:
        cause, why = event_cause(signals, event)
        origin = {"made-here": "made here", "came-in": "came in from outside"}.get(
            event.origin or "", "origin undecided"
        )
        where = f"{event.layer or 'the model'}, stage {event.stage or 'unknown'}"
        ids = f", target nodes {', '.join(map(str, event.nodes[:4]))}" if event.nodes else ""
        largest = event.detail.get("largest_before")
        size = f" (largest finite value before: {largest:.3g})" if isinstance(largest, (int, float)) else ""
        rank = f" on rank {event.rank}" if event.rank >= 0 else ""
        more = "" if total == 1 else f" {total - 1} later ones follow from it."
        return self.finding(
            f"first non-finite value at step {event.step}{rank}: {where}{ids}, {origin}{size}: {why}.{more}",
            severity="error",
            limit=0.0,
            name=_SIGNAL_OF_STAGE.get(event.stage or "", "output.max_abs"),
            value=float("nan"),
            layer=event.layer,
            step=event.step,
            cause=cause,
        )

    @staticmethod
    def _weights_cause(signals: Signals, bad: int) -> tuple[str, str]:
        totals = [s.detail.get("tensors") for s in signals.find("weight.non_finite") if s.layer is None]
        tensors = next((t for t in totals if isinstance(t, int)), None)
        if tensors is not None and 2 * bad > tensors:
            return "learning-rate", "most of the network is non-finite, as after a step that blew up"
        return "uninitialized-parameter", "the others are finite, as with memory that was never initialised"


_SIGNAL_OF_STAGE = {
    "input": "input.max_abs",
    "score": "score.max_abs",
    "query": "score.max_abs",
    "key": "score.max_abs",
    "attention": "attention.entropy",
    "gradient": "gradient.norm",
    "weight": "weight.non_finite",
    "loss": "loss",
}


def _order(event: Event) -> tuple[int, bool, int]:
    """What came first: within a step the forward comes before the gradients, which carry a NaN of one rank to all."""
    return event.step, event.stage in ("gradient", "loss"), event.rank


def event_cause(signals: Signals, event: Event) -> tuple[str, str]:
    """Cause of the first non-finite value, and the reason in words."""
    features = any(s.value > 0 for s in signals.find("feature.non_finite"))
    if features or (event.origin == "came-in" and (event.stage in (None, "input") or _is_first(signals, event))):
        return "non-finite-data", "the data held it already"
    weights_finite = event.detail.get("weights_finite")
    if event.stage == "weight" or weights_finite is False:
        if event.step <= 0:
            return "uninitialized-parameter", "the weights were non-finite before the first update"
        return "learning-rate", "the weights went non-finite in an update"
    low = str(event.detail.get("dtype") or signals.context.get("precision") or "")
    if low.removeprefix("torch.") in ("fp16", "float16", "half"):
        limit = " (65504)" if event.stage in FORWARD else ""
        return "precision", f"overflow of fp16{limit} with all weights finite"
    if event.step > 0 and signals.kind == "trace":
        return "learning-rate", "values had grown over the run until they left the number format"
    return "unsuitable-init", "the weights are finite but so large that values leave the number format"


def _is_first(signals: Signals, event: Event) -> bool:
    return bool(signals.layers) and event.layer == min(signals.layers, key=lambda layer: layer.position).name
