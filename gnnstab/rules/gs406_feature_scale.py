"""GS406 feature-scale."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from gnnstab.errors import NotEvaluable
from gnnstab.records import Finding, Signal, Signals
from gnnstab.records.vocabulary import (
    LOSS,
    LOSS_MARKED_TARGETS,
    LOSS_TARGET_RMS,
    OPTIMIZER_INPUT_SHARE,
    PLACE_TARGETS_LEFT,
    PLACE_UNREACHED_TARGETS,
)
from gnnstab.rules._by_steps import by_steps_of_inputs
from gnnstab.rules.base import Rule, rule, threshold
from gnnstab.rules.gs301_attention_explosion import AttentionExplosion
from gnnstab.rules.gs302_attention_saturated_by_input import AttentionSaturatedByInput
from gnnstab.rules.queries import Attention, attention, first_loss, measured, names, percent


@rule("GS406", "feature-scale", cause="feature-scale", severity="error", confidence="high")
class FeatureScale(Rule):
    """Input features are unscaled, and something behind them saturates.

    ## Why it matters
    Features ten times as large make the logits of the first attention layer a hundred times as large (from 31 to 3113,
    Ĥ from .99 to .04). A single large column (positions in millimetres, time stamps, counts) does the same and drowns
    the others.

    ## What to do
    Standardise the columns with the statistics of the training set, or `nn.BatchNorm1d(in_channels)` on the input; a
    LayerNorm mixes the columns, so that one that is much larger makes every row the same. Look up integer ids in an
    `nn.Embedding`.

    ## How it is measured
    The RMS of the input features, and of one column over the median column; where the model ran, of every tensor of the
    batch by its name whose size reaches a weight without a normalisation in between. A warning needs a symptom that
    scale explains (attention that is healthy at an input of RMS 1, a saturated gate) or steps on two copies, one with
    the tensor standardised: that one learns and the other hardly does. So it is with a tensor of an RMS below 0.01.
    What only comes down from a far-off first output has not learned; entries that hold one number far away from all
    others are put to 0 on that copy.

    Warnings by themselves:

    - an RMS above 1000 that reaches a weight;
    - targets of an RMS above 1000 that the output falls 30 times short of, or did at first and leaves more than half of their variance at the end of a run; where nobody saw them, a first loss that no mean or sum of squares of smaller ones reaches;
    - targets out of the range of a sigmoid or tanh that ends the model (times a number or not), under a squared or
      absolute error;
    - one number far away from all others that several targets of a squared error hold. Three deviations are enough
      where a mask of the batch tells just these targets, and labels below 0 count that the loss takes for a class,
      where steps for half of the rows learn the others only without them.

    ## When it is silent
    For whole numbers (ids, indices, counts, masks, one-hot columns), unless a weight multiplies a column of them with
    an RMS above 10 as it is; for targets beside which the loss is small or that it scales itself, unless its gradient
    compares them as they are. Without a symptom, or where steps with the tensor standardised learn no better, it is
    information; so it is of an input in a run that has learned (as GS302).

    ## Sources
    LeCun et al. 1998, *Efficient BackProp*, on standardised inputs. Measured: Gaussian features × 1 to × 100, complete
    graphs.
    """

    column_ratio: float = threshold(
        20.0, unit="× median column RMS", source="measured on the pilot benchmark: columns × 100 to × 1000"
    )
    rms: float = threshold(10.0, unit="RMS", source="measured: features × 10 give logits × 100, which saturates")
    warn_entropy: float = threshold(
        AttentionExplosion.warn_entropy, unit="fraction of ln(in-degree)", source="as GS301"
    )
    error_entropy: float = threshold(
        AttentionExplosion.error_entropy, unit="fraction of ln(in-degree)", source="as GS301"
    )
    one_hot_share: float = threshold(AttentionExplosion.one_hot_share, unit="share of node-heads", source="as GS301")
    fresh_factor: float = threshold(
        AttentionSaturatedByInput.fresh_factor, unit="× limits on fresh weights", source="as GS302"
    )
    input_rms: float = threshold(
        4.0, unit="RMS", source="derived: 16 times the logits of an input of RMS 1, which no healthy layer stands"
    )
    gate_share: float = threshold(0.5, unit="share of gates", source="as GS104")

    absurd: float = threshold(
        1000.0, unit="RMS", source="derived: a step of a usual rate moves what follows by more than it is"
    )
    target: float = threshold(
        1000.0, unit="RMS", source="measured: energies of 380 still train; a network begins at outputs of RMS 1 or less"
    )
    raw: float = threshold(
        10.0, unit="× the loss", source="derived: a mean of absolute differences to them is as large as they are"
    )
    mark: float = threshold(
        20.0, unit="× the spread of the others", source="derived: no measured values hold one number so far away"
    )
    told: float = threshold(
        3.0,
        unit="× the spread of the others",
        source="derived: 1 of 370 normal values; a mask and steps on a copy tell the rest",
    )
    outside: float = threshold(
        0.25, unit="share of targets", source="derived: a few may be outliers; of whole units of another scale most are"
    )
    unreached: float = threshold(0.1, unit="share of the variance", source="as GS701")
    small: float = threshold(
        0.01, unit="RMS", source="derived: beside biases of the size of the weights next to nothing of it is left"
    )
    taken: float = threshold(0.65, unit="share of the progress", source="as GS103")
    left: float = threshold(
        0.5, unit="share of the variance", source="heuristic: the mean of the targets alone leaves all of it"
    )
    short: float = threshold(30.0, unit="× the output", source="heuristic: many hundred steps of Adam at 1e-3 away")

    def check(self, signals: Signals) -> Iterator[Finding]:
        """One finding for each tensor with a symptom, else one for the batch."""
        yield from self._of_the_loss(signals)
        yield from self._marked(signals)
        yield from self._out_of_range(signals)
        yield from self._at_their_mean(signals)
        # What is not even finite has no scale: GS407 tells.
        broken = {s.layer for s in signals.find("place.non_finite")}
        yield from self._at_places(signals, [s for s in self._places(signals) if s.layer not in broken])

    def _places(self, signals: Signals) -> list[Signal]:
        """Sizes of the tensors of the batch; of the node features alone, which a weight is given, where nobody looked at more."""
        found = [s for name in ("place.rms", "place.column_ratio") for s in measured(signals.find(name))]
        if found:
            return found
        features = [s for name in ("feature.rms", "feature.column_ratio") for s in measured(signals.find(name))]
        if not features:
            raise NotEvaluable(signals.why_missing("feature.rms"))
        return [replace(s, detail={**s.detail, "arrives": True}) for s in features]

    def _of_the_loss(self, signals: Signals) -> Iterator[Finding]:
        """A loss says how large the targets are where nobody has seen them: no mean or sum of squares is larger."""
        output = signals.find("place.output")
        if not output or any(s.detail.get("target") for s in signals.find("place.rms")):
            return
        for size in signals.find(LOSS_TARGET_RMS)[:1]:
            beside = size.detail.get("output_rms")  # A trace may come from a stranger.
            if isinstance(beside, (int, float)) and size.value > max(self.target, self.short * beside):
                yield self.finding(
                    f"the targets have RMS {size.value:.3g} (limit {self.target:g}), as the gradient of the squared error shows, and the output "
                    f"{beside:.3g}: the loss is of their scale, and so is its gradient. Standardise the targets.",
                    severity="warning",
                    limit=self.target,
                    signal=size,
                )
                return
        # Of the first loss alone: the ones that come after an update may be what a rate that is too high has made of them.
        start, entries = first_loss(signals), int(output[0].detail.get("entries", 0))
        limit = entries * (self.target + output[0].value) * (self.target + output[0].value)
        if entries and output[0].value < self.target / self.short and math.inf > start > limit:
            yield self.finding(
                f"the loss starts at {start:.3g} while the {entries} entries of the output have RMS {output[0].value:.2g}: what it compares them "
                f"with is larger than {self.target:g}, whether it takes the mean or the sum of their squares. Standardise the targets.",
                severity="warning",
                limit=limit,
                name=LOSS,
                value=start,
                unit="loss",
                confidence="medium",
            )

    def _grown(self, signals: Signals) -> Iterator[Signal]:
        """Targets to whose scale the output of a run has grown, and not much further."""
        first = max((s.value for s in signals.find("place.output")), default=math.inf)
        short = {str(s.layer) for s, _ in self._crossed(measured(signals.find("place.rms")), first_loss(signals))}
        for signal in signals.find(PLACE_TARGETS_LEFT) if signals.kind == "trace" else ():
            size = signal.detail.get("rms")  # A trace may come from a stranger.
            large = isinstance(size, float) and size > max(self.target, self.short * first)
            yield from [signal] if large and signal.value > self.left and signal.layer not in short else []

    def _at_their_mean(self, signals: Signals) -> Iterator[Finding]:
        for signal in self._grown(signals):
            yield self.finding(
                f"the targets `{signal.layer}` of the batch have RMS {signal.detail['rms']:.3g} (limit {self.target:g}), and the output began far below: the run has "
                f"been spent on growing to their scale, and at its end the output leaves {signal.value:.2g} times their variance, where their mean alone leaves 1. Standardise the targets.",
                severity="warning",
                limit=self.left,
                signal=signal,
            )

    def out_of_range(self, signals: Signals) -> Iterator[Signal]:
        """Targets that the last operation of the model cannot give; of a ReLU GS701 tells, of a clamp GS703."""
        for signal in signals.find(PLACE_UNREACHED_TARGETS):
            numbers = [signal.detail.get(key) for key in ("outside", "smallest", "largest", "low", "high")]
            # A trace may come from a stranger, and a ReLU has no upper limit.
            known = all(isinstance(number, float) for number in numbers) and signal.detail.get("operation") != "clamp"
            if known and signal.detail["outside"] > self.outside and signal.value > self.unreached:
                yield signal

    def _out_of_range(self, signals: Signals) -> Iterator[Finding]:
        for signal in self.out_of_range(signals):
            told = signal.detail
            yield self.finding(
                f"the targets lie from {told['smallest']:.4g} to {told['largest']:.4g}, and the output ends in a {told.get('operation')} and stays from "
                f"{told['low']:.4g} to {told['high']:.4g}: {percent(told['outside'])} of them are out of its range, which leaves an error of "
                f"{signal.value:.2g} times their variance at least. Take the function off the last layer, or scale the targets into its range.",
                severity="warning",
                limit=self.unreached,
                signal=signal,
            )

    def _marked(self, signals: Signals) -> Iterator[Finding]:
        """One number among the targets that stands for missing values and is compared with the output all the same."""
        for signal in signals.find(LOSS_MARKED_TARGETS)[:1]:
            mark, count, of = (signal.detail.get(key) for key in ("mark", "count", "of"))
            if mark is None:
                continue
            mask, tried = signal.detail.get("mask"), ""
            best, undone, steps = (signal.detail.get(key, math.nan) for key in ("best", "undone", "steps"))
            if (taken_for := signal.detail.get("taken_for")) is not None:
                yield self.finding(
                    f"`{signal.detail.get('target')}` holds {mark:g} in {count} of {of} rows, and the loss takes them for class {taken_for}, as its gradient shows. {steps} of your "
                    f"optimizer's steps on a copy, for half of the rows, bring the loss of the others to {best:.3g} at the best of your rate, a third of it, three and ten times it, "
                    f"and to {undone:.3g} where these are left out. Leave them out: cross_entropy(output, y, ignore_index={mark:g}).",
                    severity="warning",
                    limit=0.0,
                    signal=signal,
                    cause="masking",
                )
                continue
            if mask is not None:
                tried = (
                    f" `{mask}` of the batch tells just these entries. {steps} of your optimizer's steps on a copy, for half of the rows, bring the loss of the others to "
                    f"{best:.3g} at the best of your rate, a third of it, three and ten times it, and to {undone:.3g} where these are left out."
                )
            yield self.finding(
                f"the targets hold {mark:g} in {count} of {of} entries, {signal.value:.3g} times the spread of the others away from them, as a mark of "
                f"missing values does, and the loss compares the output with it.{tried} Leave these entries out: known = y != {mark:g}; "
                "loss(output[known], y[known]).",
                severity="warning",
                limit=self.mark if mask is None else self.told,
                signal=signal,
                cause="masking",
            )

    def _at_places(self, signals: Signals, places: Sequence[Signal]) -> Iterator[Finding]:
        quiet: list[tuple[Signal, float]] = []
        done: set[str | None] = set()
        for signal, limit in sorted(
            self._crossed(places, first_loss(signals)), key=lambda pair: pair[0].value / pair[1], reverse=True
        ):
            if signal.layer in done:
                continue
            what, (symptoms, severe) = self._what(signal, limit), self._symptoms_of(signals, signal)
            if signal.detail.get("target"):
                output = float(signal.detail["output_rms"])
                after = (
                    f"and the output {output:.3g}: the output has to grow to their scale. Standardise the targets"
                    if signal.detail.get("compared")
                    else f"and the output {output:.3g}: the loss is of their scale, and so is its gradient. Standardise the targets"
                )
            elif symptoms:
                after = f"and saturates {names(symptoms)}, whose logits grow with it. Standardise it, or put a BatchNorm in front"
            elif signal.name.endswith(".rms") and signal.value > self.absurd:
                after = "and reaches a weight as it is. Standardise it, or put a normalisation in front"
            else:
                quiet.append((signal, limit))
                continue
            done.add(signal.layer)
            found = self.finding(
                f"{what} {after}.", severity="error" if severe else "warning", limit=limit, signal=signal
            )
            yield by_steps_of_inputs(found, signals)
        for signal in self._tiny(signals) if not done else ():
            if (told := self._by_steps(signals, signal, self.small)) is not None:
                yield told
                return
        if quiet and not done:
            signal, limit = quiet[0]
            yield self._by_steps(signals, signal, limit) or self.finding(
                f"{self._what(signal, limit)}. Nothing behind it is saturated on this data.",
                severity="info", limit=limit, signal=signal,
            )  # fmt: skip

    def _by_steps(self, signals: Signals, signal: Signal, limit: float) -> Finding | None:
        """A warning where steps on two copies have shown that the scale keeps the model from learning."""
        for tried in signals.find(OPTIMIZER_INPUT_SHARE):
            told, names_ = tried.detail, tried.detail.get("names") or ()
            if signal.layer not in names_ or told.get("learns") or not tried.value > self.taken:
                continue
            first, best, undone = (float(told.get(key, math.nan)) for key in ("first", "best", "undone"))
            zeros = told.get("zeros")
            beside = f", where an output of zeros has {zeros:.3g}" if isinstance(zeros, float) else ""
            marks = told.get("marks")  # A trace may come from a stranger.
            mark = marks.get(signal.layer) if isinstance(marks, dict) else None
            known, advice = "", "Standardise it, or put a BatchNorm in front"
            if isinstance(mark, (int, float)):
                known = f", and its entries of {mark:g}, a mark of missing values that goes in as a number, put to 0,"
                advice = (
                    f"Mask these entries, and leave rows of them out of every mean: x.masked_fill(x == {mark:g}, 0)"
                )
            return self.finding(
                f"{self._what(signal, limit)}, and the model hardly learns: steps of {told.get('optimizer')} on a copy bring "
                f"{told.get('objective')} from {first:.3g} to {best:.3g}{beside}. With {names(list(names_))} standardised{known} {told.get('steps')} of them bring it "
                f"to {undone:.3g}: the scale takes {100 * tried.value:.0f} % of the progress. {advice}.",
                severity="warning", limit=self.taken, signal=replace(tried, layer=signal.layer), cause="masking" if known else self.cause,
            )  # fmt: skip
        return None

    def unexplained(self, signals: Signals) -> dict[str, bool]:
        """Tensors of the batch beyond a limit that nothing is known to suffer from: name → True where a weight is given them as they are."""
        crossed = self._inputs_beyond(signals)
        if any(self._symptoms_of(signals, s)[0] or (s.name == "place.rms" and s.value > self.absurd) for s in crossed):
            return {}
        return _fed([*crossed, *self._tiny(signals)])

    def beyond(self, signals: Signals) -> dict[str, bool]:
        """The same of all tensors of the batch beyond a limit."""
        return _fed([*self._inputs_beyond(signals), *self._tiny(signals)])

    def _tiny(self, signals: Signals) -> list[Signal]:
        """Tensors of measured values that a weight is given and whose size vanishes beside its bias."""
        found = [s for s in measured(signals.find("place.rms")) if s.detail.get("fed") and not s.detail.get("whole")]
        return [s for s in found if 0 < s.value < self.small and not s.detail.get("target")]

    def targets_beyond(self, signals: Signals) -> list[str]:
        """The targets that the output falls far short of; ``y`` where the loss alone shows them."""
        places = measured(signals.find("place.rms"))
        found = [str(s.layer) for s, _ in self._crossed(places, first_loss(signals)) if s.detail.get("target")]
        found += [str(s.layer) for s in self._grown(signals)]
        return found or ["y" for _ in (*self._of_the_loss(signals), *self.out_of_range(signals))]

    def _inputs_beyond(self, signals: Signals) -> list[Signal]:
        places = [s for name in ("place.rms", "place.column_ratio") for s in measured(signals.find(name))]
        return [s for s, _ in self._crossed(places, first_loss(signals)) if s.layer and not s.detail.get("target")]

    def _crossed(self, places: Sequence[Signal], loss: float) -> Iterator[tuple[Signal, float]]:
        for signal in places:
            detail = signal.detail
            if detail.get("target"):
                output = detail.get("output_rms")
                # A loss that is small beside the targets scales them itself.
                scaled = loss < signal.value / self.raw and not detail.get("compared")
                if (
                    signal.name.endswith(".rms")
                    and output is not None
                    and not scaled
                    and signal.value > self.short * float(output)
                ):
                    limit = self.target
                else:
                    continue
            elif detail.get("whole") or not detail.get("arrives"):
                continue
            else:
                limit = self.rms if signal.name.endswith(".rms") else self.column_ratio
            if signal.value > limit:
                yield signal, limit

    def _what(self, signal: Signal, limit: float) -> str:
        of_batch = f" `{signal.layer}` of the batch" if signal.layer else ""
        if signal.name.endswith(".rms"):
            has = f"RMS {signal.value:.3g} (limit {limit:g})"
            return (
                f"the targets{of_batch} have {has}" if signal.detail.get("target") else f"the input{of_batch} has {has}"
            )
        column = signal.detail.get("column")
        which = "a column" if column is None else f"column {column}"
        whose = f" `{signal.layer}`" if signal.layer else ""
        others = "RMS of the other column" if signal.detail.get("columns") == 2 else "median column's RMS"
        return f"{which} of the input{whose} has {signal.value:.3g} times the {others} (limit {limit:g})"

    def _symptoms_of(self, signals: Signals, signal: Signal) -> tuple[list[str], bool]:
        """What is saturated by a tensor: layers that it is given to beside the node states, else whatever its input drives."""
        fed = [str(name) for name in signal.detail.get("fed", ())]
        states = [
            state
            for state in attention(signals)
            if any(f"{name}.".startswith(f"{state.layer}.") for name in fed)
            and state.crosses(self.warn_entropy, self.one_hot_share)
        ]
        if states and signal.name.endswith(".rms"):
            return [state.layer for state in states], any(s.entropy.value < self.error_entropy for s in states)
        return self._symptoms(signals)

    def _by_both(self, signals: Signals, state: Attention) -> bool:
        """True for attention that the weights saturate at RMS 1 already, and whose input is large on top of it."""
        rms = signals.value("input.rms", layer=state.layer)
        large = not state.synthetic and rms is not None and rms > self.input_rms
        return large and state.crosses(self.warn_entropy, self.one_hot_share)

    def _symptoms(self, signals: Signals) -> tuple[list[str], bool]:
        limits = (self.warn_entropy, self.one_hot_share, self.fresh_factor)
        saturated = [
            state for state in attention(signals) if state.driven_by_input(*limits) or self._by_both(signals, state)
        ]
        gates = [f"the gate of {s.layer}" for s in signals.find("gate.saturated_share") if s.value > self.gate_share]
        severe = any(state.entropy.value < self.error_entropy for state in saturated)
        return [state.layer for state in saturated] + gates, severe


def _fed(crossed: Sequence[Signal]) -> dict[str, bool]:
    return {str(s.layer): bool(s.detail.get("fed")) for s in crossed}
