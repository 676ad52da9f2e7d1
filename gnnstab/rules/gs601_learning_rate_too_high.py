"""GS601 learning-rate-too-high."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from gnnstab.errors import NotEvaluable
from gnnstab.records import Finding, Signal, Signals
from gnnstab.records.rises import LASTING, harms
from gnnstab.records.vocabulary import (
    LOSS,
    LOSS_FIRST_RISE,
    OPTIMIZER_GROUP_RATE,
    OPTIMIZER_LOSS_RISE,
    OPTIMIZER_LR_TO_RMS,
    OPTIMIZER_MADE,
    OPTIMIZER_OUTPUT_MOVE,
    OPTIMIZER_OVERSHOOT,
    UPDATE_RATIO,
)
from gnnstab.rules._rate_words import calm_rate as calm_rate
from gnnstab.rules._rate_words import group_words, made_words, rise_words
from gnnstab.rules._rate_words import lower as lower
from gnnstab.rules.base import Rule, rule, threshold
from gnnstab.rules.gs301_attention_explosion import AttentionExplosion
from gnnstab.rules.learned import frozen
from gnnstab.rules.queries import attention, matrices, names, percent, times, typical_matrix


@rule("GS601", "learning-rate-too-high", cause="learning-rate", severity="error", confidence="high")
class LearningRateTooHigh(Rule):
    """The optimizer moves the output so far per step that the loss rises.

    ## Why it matters
    A step that changes the output by many times its spread leaves the region in which the slope means anything: the
    loss rises, gradients grow, and attention scores run into saturation and stay there. Three layers of GATConv under
    Adam: at 5e-2 the output moves by 13 times its spread and the loss rises from 0.7 to 2.7, at 2e-2 it moves by 6 and
    the loss falls.

    ## What to do
    Take the rate that the finding names: of lr/3, lr/9, … the first at which the same steps are calm and 100 bring the loss
    lower than at a third of it; lr/3 where none was tried. A warm-up helps too; a factor of 0.7 changes nothing.

    ## How it is measured
    With model, batch, loss and optimizer: six real steps on a copy (with momentum up to twenty, until updates have
    their full size); the largest loss over the first, and the change of the output in the first step over its spread.
    The rate is the cause where a lower one makes them calm. Each parameter group whose rate is ten times the lowest is
    tried at the lowest; one that takes a quarter of the progress of 30 steps is a finding of its own.

    In a run: the losses of the first steps over that of step 0, unless the same steps on a copy are calm; the loss,
    when it ends far above what it had reached; and, while the rate rises beyond all before (after the first 50 steps,
    under SGD 10), rate times curvature, the slope along each update after it over that before. This counts while the
    loss does not fall, or under SGD while the rate rises faster than any warm-up. Under Adam and its kin also a rate
    that rises to ten times its default while medians of ten losses lie above three times the best of them.

    At a run's end, where one-hot attention or closed units are warned of that were not there at its beginning: its
    steps anew on copies of the weights that it began with. The rate is their cause where they come back at it, and at a
    third, a ninth, … of it the loss falls as far without them.

    Without steps, the rate over the RMS of the weight matrices is a hint (it depends on the width of the input, and
    large weights of a failed run make it small, where the update over the widest weights in use, gain 5/3, counts as
    well); it counts where weights that an optimizer has made saturate the attention, from where trial steps are calm;
    of a file alone only where no gradient is left (GS301).

    ## When it is silent
    A training that clips its gradients is judged with its limit: pass `clip=` to `diagnose`; a run shows it.
    Where something else makes the loss rise: the sums, if it is calm with them divided by the in-degree (GS401); a
    BatchNorm over one or two rows (GS108); an operation that ends calm steps, or a loss of the run that is not finite
    (GS502); one batch whose input jumps and after which the next step is calm (GS406). New classes or a second task,
    from which training comes down: a live warning needs a loss that still rises, or that after ten steps has not fallen
    by a tenth.

    Losses that are not positive have no ratio: there only a trial loss that is not finite counts. A rise within the
    first steps, unless a hundredfold, is information once the run ends at half of its first loss or below. In
    reinforcement learning a loss may rise for other reasons: alone it counts when it is ten times its best and above
    its start.

    ## Sources
    Wortsman et al. 2023, *Small-scale Proxies for Large-scale Transformer Training Instabilities*, arXiv 2309.14322;
    Anson and Aitchison 2025, *Controlling Changes to Attention Logits*, arXiv 2511.21377. Measured: five kinds of
    layers, widths 8 to 128 (docs/accuracy.md).
    """

    warn_rise: float = threshold(1.5, unit="× first loss", source="measured: 1.0 at nine of ten healthy rates")
    error_rise: float = threshold(
        100.0, unit="× first loss", source="measured: none of 110 healthy programs at usual rates"
    )
    """Such a rise counts however soon it passes: what the initialisation was worth is lost."""

    lasting: float = threshold(
        4,
        unit="steps",
        source="measured: a rise that fewer of the first six steps share is one that healthy programs make up for",
    )
    """Steps above 1.25 × the first loss."""

    building: float = threshold(
        2, unit="steps", source="measured: as few are enough when the rise was still building up"
    )
    """The same, when the largest loss comes in the third step or later, or is the last before one that is not finite."""

    least_move: float = threshold(
        4.0, unit="× the output's spread", source="measured: a first step of healthy rates moves the output by about 1"
    )
    """A loss that rises while the output hardly moves is noise, or the end of a training."""

    run_rise: float = threshold(
        5.0, unit="× first loss", source="heuristic: batches differ, and the move of the output is not known"
    )
    """Rise over the first steps of a run that counts without the move of the output."""

    overshoot: float = threshold(
        1.5,
        unit="rate × curvature",
        source="measured: runs whose rate ramps up pass it 30 to 160 steps before they blow up",
    )
    """Level that three of four updates in a row reach while the rate rises; beyond 2 every update ends higher than it began."""

    adaptive_overshoot: float = threshold(
        2.0, unit="rate × curvature", source="derived: there an update ends as high as it began"
    )
    """The same level under optimizers that adapt to the curvature: they train just below it."""

    warn_ratio: float = threshold(0.1, unit="relative update", source="measured: .07 gives the best loss at width 16")
    ruined_ratio: float = threshold(
        0.2,
        unit="relative update",
        source="measured: .31 in stacks that eight updates have ruined, .07 at the best rate",
    )
    """Update over weights from which saturated attention behind trained weights counts as made by the rate."""

    absurd: float = threshold(
        300.0,
        unit="first update over the widest weights usually drawn",
        source="derived: one update makes weights as large as GS605 calls absurd",
    )
    """From here on the rate that a file holds needs no step to be judged."""

    replaced: float = threshold(
        0.5,
        unit="relative update",
        source="measured: .07 at the best rate, 1.0 in a network that its first step has saturated",
    )
    """First update over weights from which a rise counts however soon it passes, and blown-up weights are the rate's."""

    loss_rise: float = threshold(10.0, unit="× best loss", source="heuristic: a run that has lost what it had learned")

    far_above: float = threshold(
        10.0, unit="× the default rate", source="as for trial steps: a usual rate is off by less"
    )
    left_behind: float = threshold(
        3.0,
        unit="× best loss",
        source="measured: 16 to 54 steps before three ramps blew up, in none of 14 healthy schedules of Adam",
    )
    made: float = threshold(0.5, unit="share of the way back", source="as for what is undone on a copy")

    run: float = threshold(20, unit="steps", source="heuristic: the losses of fewer are those of single batches")
    """Losses from which on the end of a run can be compared with its beginning."""

    def check(self, signals: Signals) -> Iterator[Finding]:
        """One finding: steps that were tried, the first steps of the run, the end of the run, and a hint where there is nothing else."""
        on_copies = signals.find(OPTIMIZER_LOSS_RISE)
        tried = [*on_copies, *self._of_run(signals, on_copies)]
        losses, ratio = signals.find(LOSS), _ratio(signals)
        if not tried and not losses and ratio is None and not signals.find(OPTIMIZER_GROUP_RATE):
            raise NotEvaluable(signals.why_missing(OPTIMIZER_LOSS_RISE))
        found = [finding for made in signals.find(OPTIMIZER_MADE) for finding in self._made(made)]
        found = found or [_of_group(finding, signals) for rise in tried for finding in self._rise(rise, signals)]
        found = found or [finding for one in signals.find(OPTIMIZER_GROUP_RATE) for finding in self._group(one)]
        found = found or [finding for one in signals.find(OPTIMIZER_OVERSHOOT) for finding in self.overshot(one)]
        found = found or [finding for loss in losses for finding in self._lost(loss, signals)]
        found = found or list(self._ruined(signals))
        if not found and not tried and ratio is not None and ratio.value > self.warn_ratio:
            found = [self._hint(ratio, signals)]
        yield from found[:1]

    def _of_run(self, signals: Signals, on_copies: Sequence[Signal]) -> list[Signal]:
        """The rises of the run's own losses that no trial on one of its batches speaks against: there the batches made them, or a sum."""
        if any(_norms_told(s, signals) for s in on_copies):  # Signs that flip, as the rule for norms says.
            return []
        spoken = any(s.value <= LASTING or "calm_as_means" in s.detail for s in on_copies)
        return [s for s in signals.find(LOSS_FIRST_RISE) if not (spoken and s.value <= self.error_rise)]

    def _rise(self, rise: Signal, signals: Signals) -> Iterator[Finding]:
        moves = [s.value for s in signals.find(OPTIMIZER_OUTPUT_MOVE)]
        limit = self.warn_rise
        # An operation ended steps that were calm, which GS502 names; or sums make the loss so steep, which GS401 does, or norms, which GS108 does.
        if "event" in rise.detail or "calm_as_means" in rise.detail or _norms_told(rise, signals):
            return
        if moves and max(moves) < self.least_move and math.isfinite(rise.value):
            return
        if not moves and rise.name == LOSS_FIRST_RISE:
            limit = self.run_rise
        if not rise.value <= limit and (self._lasts(rise) or self._replaced(rise, signals)):
            severe = not rise.value <= self.error_rise
            steep = math.isnan(
                rise.detail.get("calm_lr") or 0.0
            )  # No lower rate helps: whatever it is, it is not the rate.
            yield self.finding(
                rise_words(rise, moves, signals),
                severity="error" if severe else "warning",
                limit=limit,
                signal=rise,
                cause="" if steep else None,
            )

    def _replaced(self, rise: Signal, signals: Signals) -> bool:
        """True of a run whose first update was half as large as the weights: what they were worth went with it, however soon the rise passes."""
        early = typical_matrix([s for s in signals.find(UPDATE_RATIO) if s.detail.get("early")])
        return rise.name == LOSS_FIRST_RISE and early is not None and early.value > self.replaced

    def _group(self, signal: Signal) -> Iterator[Finding]:
        """One finding for a parameter group whose rate alone keeps the model from learning."""
        if harms(signal.detail):
            told = {key: float(signal.detail.get(key, math.nan)) for key in ("first", "best", "undone", "lower")}
            yield self.finding(
                f"{group_words(signal)} on a copy {signal.detail.get('steps')} steps bring the loss of one batch from {told['first']:.3g} to "
                f"{told['best']:.3g}, and at {told['lower']:.3g} to {told['undone']:.3g}. Lower the rate of this group.",
                severity="warning",
                limit=LASTING,
                signal=signal,
            )

    def overshot(self, level: Signal) -> Iterator[Finding]:
        """One finding where updates overshoot while the rate rises; of a run the level that lasted counts."""
        limit = self.adaptive_overshoot if level.detail.get("adaptive") else self.overshoot
        if level.detail.get("lasting") and level.value > limit:
            lr = level.detail.get("lr")
            rate = f" ({lr:.3g})" if isinstance(lr, (int, float)) else ""
            yield self.finding(
                f"at step {level.step} the learning rate{rate} rises and its updates overshoot: rate times curvature along them is "
                f"{level.value:.3g} in three of four in a row, and beyond 2 each ends higher than it began. Stop the rise, or go back to a "
                "third of this rate.",
                severity="warning",
                confidence="medium",
                limit=limit,
                signal=level,
            )

    def _lasts(self, rise: Signal) -> bool:
        above, peak = rise.detail.get("above", self.lasting), rise.detail.get("peak", 1)
        grew = above >= self.building and (peak >= 3 or bool(rise.detail.get("broke")))
        lost = float(rise.detail.get("lost", 1.0)) > self.loss_rise  # it had fallen, and went beyond its start
        return not rise.value <= self.error_rise or above >= self.lasting or grew or lost

    def climbed(self, step: int, lr: float, loss: float, best: float, best_rate: float) -> Finding:
        """Of a run whose rate goes on rising beyond the one at which its loss was at its best."""
        return self.finding(
            f"at step {step} the learning rate ({lr:.3g}) goes on rising, far above what its optimizer has by default, and the loss has left its best "
            f"behind: {best:.3g} at a rate of {best_rate:.3g}, {loss:.3g} now (medians). End the rise there; a schedule may count steps where epochs are meant.",
            severity="warning",
            limit=self.left_behind * best,
            name=LOSS,
            value=loss,
            step=step,
        )

    def _lost(self, loss: Signal, signals: Signals) -> Iterator[Finding]:
        best, start = loss.detail.get("best"), loss.detail.get("start")
        if not isinstance(best, (int, float)) or not isinstance(start, (int, float)) or not best > 0:
            return
        moved = max((s.value for s in signals.find(OPTIMIZER_OUTPUT_MOVE)), default=0.0)
        if moved > self.least_move and loss.value > self.warn_rise * start and loss.detail.get("steps", 0) >= self.run:
            yield self.finding(
                f"the run ends above where it began, the loss at {loss.value:.3g} after {start:.3g}, and one update moves the output by "
                f"{times(moved)} times its spread. {lower(calm_rate(signals))}",
                severity="warning",
                limit=self.warn_rise * start,
                signal=loss,
            )
            return
        if _risen(min(loss.value, float(loss.detail.get("ends_above", math.inf))), best, start, self.loss_rise):
            yield self.finding(
                f"the loss ended at {loss.value:.3g} after it had reached {best:.3g}: the run lost what it had learned. "
                f"{lower(calm_rate(signals))}",
                severity="warning",
                confidence="medium",
                limit=self.loss_rise * best,
                signal=loss,
            )

    def _made(self, made: Signal) -> Iterator[Finding]:
        """One finding where the same steps at a lower rate learn as much, and leave the weights in health."""
        if made.value > self.made:
            yield self.finding(made_words(made), severity="warning", limit=self.made, signal=made)

    def _ruined(self, signals: Signals) -> Iterator[Finding]:
        """Weights that saturate the attention, moved by their own size in a few updates: calm steps come too late to show it."""
        ratio = typical_matrix(signals.find(OPTIMIZER_LR_TO_RMS))
        steps = None if ratio is None else ratio.detail.get("step")
        if ratio is None or not isinstance(steps, (int, float)) or steps < 1:
            return
        # Weights that the rate has blown up make it look small: as they were drawn, one update replaced them.
        of_drawn = _of_drawn(signals)
        blown = ratio.value > self.warn_ratio and of_drawn > self.replaced
        if not blown and not ratio.value > self.ruined_ratio:
            return
        sharp = AttentionExplosion()
        states = [s for s in attention(signals) if s.crosses(sharp.warn_entropy, sharp.one_hot_share)]
        by_weights = [s for s in states if s.made_by_weights(sharp.warn_entropy) and not s.synthetic]
        by_weights += [s for s in states if frozen(signals, s) is not None and s not in by_weights]
        if by_weights:
            lr = ratio.detail.get("lr")
            rate = f" (lr {lr:.3g})" if isinstance(lr, (int, float)) else ""
            before = f" and {of_drawn:.2g} times that of the widest weights usually drawn" if blown else ""
            calm = calm_rate(signals)
            real = "" if all(s.synthetic for s in by_weights) else " at an input of RMS 1"
            yield self.finding(
                f"{steps:.0f} updates{rate}, each of up to {percent(ratio.value)} of the weights' present size{before}, have made the weights, "
                f"which saturate the attention of {names(s.layer for s in by_weights)}{real}. "
                f"{lower(calm, ' and train anew' if calm else ', again where the loss still rises, and train anew')}",
                severity="warning",
                confidence="medium",
                limit=self.warn_ratio if blown else self.ruined_ratio,
                signal=ratio,
            )

    def _hint(self, ratio: Signal, signals: Signals) -> Finding:
        what = "Adam's first steps move" if ratio.name == OPTIMIZER_LR_TO_RMS else "early updates moved"
        lr = ratio.detail.get("lr")
        rate = f" (lr {lr:g})" if isinstance(lr, (int, float)) else ""
        drawn = _of_drawn(signals)
        if ratio.name == OPTIMIZER_LR_TO_RMS and drawn > self.absurd:
            return self.finding(
                f"one update of the rate in the file{rate} moves the weights by {ratio.value:.2g} times their size: nothing learned is left. Set the rate anew.",
                severity="warning",
                limit=self.absurd,
                signal=ratio,
            )
        return self.finding(
            f"{what} the weights by {percent(ratio.value)} of their size per step{rate}. Whether that is too much, only steps show: pass "
            "the model with batch=, loss= and optimizer=.",
            severity="info",
            confidence="low",
            limit=self.warn_ratio,
            signal=ratio,
        )


def _norms_told(rise: Signal, signals: Signals) -> bool:
    """True of a rise that is gone without norms over two rows, which GS108 has seen, or will: while a run goes on, nothing of them is known."""
    return "calm_as_rows" in rise.detail and (not signals.context or bool(signals.context.get("norm_smallest")))


def _of_drawn(signals: Signals) -> float:
    """The rate over the size of the widest weights usually drawn, the median over the matrices; 0 where nothing tells it."""
    drawn = [s.detail["of drawn"] for s in matrices(signals.find(OPTIMIZER_LR_TO_RMS)) if "of drawn" in s.detail]
    return float(np.median(drawn)) if drawn else 0.0


def _ratio(signals: Signals) -> Signal | None:
    """The larger of the two relative updates that are known without a step: a hint."""
    early = [s for s in signals.find(UPDATE_RATIO) if s.detail.get("early", True)]
    known = [typical_matrix(signals.find(OPTIMIZER_LR_TO_RMS)), typical_matrix(early)]
    return max((s for s in known if s is not None), key=lambda s: s.value, default=None)


def _of_group(finding: Finding, signals: Signals) -> Finding:
    """The finding of a rise with the group whose rate alone makes it."""
    for signal in signals.find(OPTIMIZER_GROUP_RATE):
        if signal.detail.get("calms"):
            lower = f"with it at {float(signal.detail.get('lower', math.nan)):.3g} the same steps on a copy are calm."
            return replace(finding, message=f"{finding.message} It is one group: {group_words(signal)} {lower}")
    return finding


def _risen(last: float, best: float, start: float, factor: float) -> bool:
    return not last <= factor * best and not last <= start
