"""GS502 non-finite-value."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from gnnstab.characters import counted
from gnnstab.records import Event, Finding, Signal, Signals
from gnnstab.records.vocabulary import WEIGHT_NON_FINITE_BESIDE
from gnnstab.rules._event_cause import event_cause
from gnnstab.rules.base import Rule, first_of_each_layer, rule
from gnnstab.rules.event_place import place_of
from gnnstab.rules.queries import names


@rule("GS502", "non-finite-value", cause="undefined-operation", severity="error", confidence="high")
class NonFiniteValue(Rule):
    """A value became NaN or infinite.

    ## Why it matters
    One +Inf among the logits of a target makes NaN in the softmax, the sum over neighbours spreads it by one hop per
    layer, the loss carries it into every weight with the next step. Only the *first* place tells the cause.

    ## What to do
    Write what the finding says: `logsigmoid`, `log_softmax`, a subtracted maximum, `clamp_min` before `log`, eps inside
    `sqrt`, `masked_fill` in place of a product, the loss in float32. Where no cause was measured the finding says what
    to pass: `Monitor(loss=fn)`.

    ## How it is measured
    The first non-finite value of the run, by layer, stage, step, nodes and edges, and whether it came in or was made
    there. The step is repeated with every operation watched, which gives the operation, the line of your code, the
    sizes of its operands and the tensor of the batch that carried the value in. Where the events of a run were lost,
    the first row of a layer or loss; in a checkpoint, parameters with NaN or Inf. When a run ends, its buffers, frozen
    parameters and the optimizer's state are looked at once: those that were finite before it. Of a model and a batch,
    an output that is NaN throughout beside what the loss reads, and one that is NaN in training mode alone, count too.
    The cause is what is seen:

    - NaN in a tensor of the batch: `non-finite-data`;
    - an operation that is undefined for its finite operands (log 0, 0/0, ∞ − ∞, exp without a shift, the derivative of
      a root at zero): `undefined-operation`; a softmax in which everything is masked, or a mask that is multiplied:
      `masking`;
    - an overflow of fp16 that float32 does not have: `precision`; one that is gone when a badly scaled input is
      standardised: `feature-scale`;
    - weights first, after a growth that was recorded over steps: `learning-rate`; weights from the first step, or few
      parameters of a file: memory that was never initialised; a file that is mostly NaN is too late to show why.

    ## When it is silent
    Non-finite *gradients* in the first steps of a GradScaler, or skipped by a loop of your own under fp16, are normal;
    elsewhere skipped steps are told with their number. What the code takes away again (weights of rows in which
    everything is masked, set to 0) is information where output, loss and gradients of the step are finite, and so are
    infinities that the model writes into its output, as a mask of actions, where loss and gradients are.

    ## Sources
    Micikevicius et al. 2018, *Mixed Precision Training*, arXiv 1710.03740; IEEE 754. Measured: fp16 training of a real
    actor, first non-finite value in q·k of the third layer with all weights finite.
    """

    def check(self, signals: Signals) -> Iterator[Finding]:
        """Error for the first non-finite event, else for every layer with non-finite parameters: who knows one accepts no other."""
        events = [event for event in signals.events if event.kind == "non-finite"]
        if events:
            yield self._event(signals, first_explained(events), len({(e.step, e.stage) for e in events}))
            return
        for note in [e for e in signals.events if e.kind == "note" and e.detail.get("taken_away")][:1]:
            yield self._taken_away(note)
        found = [s for s in signals.find("weight.non_finite") if s.value > 0 and s.layer is not None]
        bad = [s for s in found if "files" not in s.detail]
        if bad:
            parameters = [str(s.detail.get("parameter", s.layer)) for s in bad]
            cause, why = self._weights_cause(signals, bad)
            said = f"{len(bad)} tensor{'s hold' if len(bad) > 1 else ' holds'} NaN or Inf ({', '.join(parameters[:3])}{', …' if len(bad) > 3 else ''}): {why}."
            for one in first_of_each_layer(bad):
                yield self.finding(said, limit=0.0, signal=one, cause=cause)
        others = [s for s in found if "files" in s.detail and s.layer not in {b.layer for b in bad}]
        files = list(dict.fromkeys(str(file) for s in others for file in s.detail["files"]))
        for one in others:
            yield self.finding(
                f"NaN or Inf in {names(files)}, which nothing shows to be an older state of the newest file: look at each by itself.",
                limit=0.0,
                name=WEIGHT_NON_FINITE_BESIDE,
                value=one.value,
                layer=one.layer,
                unit="entries",
                cause="",
            )
        if not signals.find("weight.non_finite") and not signals.attention_layers:
            signals.need("weight.non_finite")

    def _event(self, signals: Signals, event: Event, total: int) -> Finding:
        cause, why, do = event_cause(signals, event)
        where, origin = place_of(event, signals.layers)
        where += "" if event.stage else ", stage unknown"
        origin = origin or "origin undecided"
        ids = f", {event.ids}" if event.ids else ""
        largest = event.detail.get("largest_before")
        size = f" (largest finite value before: {largest:.3g})" if isinstance(largest, (int, float)) else ""
        rank = f" on rank {event.rank}" if event.rank >= 0 else ""
        more = {1: "", 2: " A later one follows from it."}.get(total, f" {total - 1} later ones follow from it.")
        said = "".join(f"{part}; " for part in (str(event.detail.get("said", "")), why) if part)
        dropped = signals.context.get("steps_dropped")
        if dropped and not (signals.context.get("untold") or {}).get("moved"):  # Else they were made unseen.
            more += f" The loop skipped the update of {counted(dropped, 'step')} with such gradients, which hides the fault and does not mend it."
        what = f" {do[0].upper()}{do[1:]}." if do else ""
        when = f"at step {event.step}{rank}"
        if event.detail.get("tried"):
            when = f"after {event.step} of your optimizer's steps on a copy"
        return self.finding(
            f"{said}first non-finite value {when}: {where}{ids}, {origin}{size}.{what}{more}",
            limit=0.0,
            name=_SIGNAL_OF_STAGE.get(event.stage or "", "output.max_abs"),
            value=_value(event),
            layer=event.layer,
            step=event.step,
            cause=cause,
        )

    def _taken_away(self, event: Event) -> Finding:
        """What reaches neither the output, nor the loss, nor a gradient does no harm."""
        ids = f", {event.ids}" if event.ids else ""
        how = "and taken away again by the code behind it: the output, the loss and all gradients are finite"
        if event.detail.get("written"):
            how = "since the model writes infinities into its output, as a mask does: all gradients are finite"
        return self.finding(
            f"{event.layer or 'the model'}, stage {event.stage}{ids}: not finite at step {event.step}, {how}.",
            severity="info",
            limit=0.0,
            name=_SIGNAL_OF_STAGE.get(event.stage or "", "output.max_abs"),
            value=math.nan,
            layer=event.layer,
            step=event.step,
        )

    @staticmethod
    def _weights_cause(signals: Signals, bad: Sequence[Signal]) -> tuple[str, str]:
        """A file alone: a blow-up leaves nothing to tell a cause by."""
        tensors = next(
            (t for s in signals.find("weight.non_finite") if isinstance(t := s.detail.get("tensors"), int)), None
        )
        if tensors is not None and 2 * len(bad) > tensors:
            counts = [s.detail.get("step") for s in signals.values if s.name.startswith("optimizer.")]
            steps = [int(c) for c in (*counts, signals.context.get("step")) if isinstance(c, (int, float))]
            saved = f", saved at step {max(steps)}" if steps else ""
            return "", (
                f"most of the network is non-finite{saved}: too late to show why. Look at an earlier checkpoint, or at the trace of the run"
            )
        if signals.context.get("trained") is False:
            return (
                "uninitialized-parameter",
                "the others are as they were initialised, which fits memory that was never written (inferred from the file)",
            )
        return "", (
            f"the others are finite, and {signals.context.get('trained_reason') or 'may be trained'}: which step or file made these so "
            "cannot be seen. Look at an earlier checkpoint, and train on under gnnstab.Monitor"
        )


def _value(event: Event) -> float:
    """What the value was: inf where the event knows of nothing but infinities, else NaN."""
    operation = event.detail.get("operation") or {}
    kinds = (operation.get("tensor") or {}).get("kinds") or operation.get("kinds")
    loss = event.detail.get("loss")
    return math.inf if kinds == "Inf" or (loss is not None and math.isinf(float(loss))) else math.nan


def follows(event: Event, told: Sequence[Event]) -> bool:
    """True for an event that an earlier one of the run has brought about and that adds no operation to it.

    Weights that are not finite after a step that was not; another place of a step that was told already.
    """
    earlier = [e for e in told if e.kind == "non-finite" and e is not event and e.step <= event.step]
    if not earlier or event.detail.get("refines"):
        return False
    return event.stage == "weight" or any(e.step == event.step for e in earlier)


def first_explained(events: Sequence[Event]) -> Event:
    """The first event; of those at its step the one that knows the operation, or that came later and knew more."""
    first = min(events, key=_order)
    same = [e for e in events if (e.step, e.rank) == (first.step, first.rank)]
    for known in ("operation", "refines"):
        more = [e for e in same if e.detail.get(known)]
        if more:
            return min(more, key=_order)
    return first


_SIGNAL_OF_STAGE = {
    "input": "input.max_abs",
    "score": "score.max_abs",
    "query": "score.max_abs",
    "key": "score.max_abs",
    "attention": "attention.entropy",
    "gradient": "gradient.norm",
    "weight": "weight.non_finite",
    "state": "weight.non_finite",
    "loss": "loss",
}


def _order(event: Event) -> tuple[int, bool, int]:
    """What came first: within a step the forward comes before the gradients, which carry a NaN of one rank to all."""
    return event.step, event.stage in ("gradient", "loss"), event.rank
