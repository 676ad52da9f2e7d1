"""GS601 learning-rate-too-high."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from gnnstab.errors import NotEvaluable
from gnnstab.records import Finding, Signal, Signals
from gnnstab.rules.base import Rule, threshold
from gnnstab.rules.reading import percent, typical_matrix


@dataclass(frozen=True)
class LearningRateTooHigh(Rule):
    """The optimizer moves the weights, or the scores, too far per step.

    ## What it sees
    Three things, each when it is there: the learning rate over the RMS of the weight matrices, which is the relative size of
    Adam's first steps (median over the matrices); the measured relative update per step, early in the run; and the loss, when
    it ends far above what it had reached.

    ## Why it is unstable
    A step of a tenth of a weight changes a logit, which is a product of two weights, by a fifth, and every logit behind it
    by more. Not the size of the logits but their *change per step* is what tips training over. Later the ratio misleads: a
    failed run read 5e-4, because its weights had grown.

    ## What it looks like
    Measured at width 16: .002 (lr 3.5e-4) slow and stable, .07 (lr 1e-2) the best loss of all, .35 (lr 5e-2) collapse. The
    1e-3 of common advice is far too strict as an alarm.

    ## Fix
    `Adam(lr=lr / 3)`, and a warm-up over some hundred steps. A factor of 0.7 changes nothing that can be measured.

    ## When it is wrong
    Tensors that start at zero have no meaningful ratio; the median over all matrices leaves them out. A loss may rise for other
    reasons in reinforcement learning, so the loss alone counts only when it is ten times its best and above its start.

    ## References
    Wortsman et al. 2023, *Small-scale Proxies for Large-scale Transformer Training Instabilities*, arXiv 2309.14322; Anson and
    Aitchison 2025, *Controlling Changes to Attention Logits*, arXiv 2511.21377. Measured: width 16, up to 10 nodes.
    """

    code: ClassVar[str] = "GS601"
    name: ClassVar[str] = "learning-rate-too-high"
    cause: ClassVar[str] = "learning-rate"
    severity: ClassVar[str] = "error"
    confidence: ClassVar[str] = "medium"

    warn_ratio: float = threshold(0.1, unit="relative update", source="measured: .07 gives the best loss")
    error_ratio: float = threshold(0.3, unit="relative update", source="measured: .35 collapses")
    loss_rise: float = threshold(10.0, unit="× best loss", source="heuristic: a run that has lost what it had learned")

    def check(self, signals: Signals) -> Iterator[Finding]:
        """One finding: the worst of what is there."""
        early = [s for s in signals.find("update.ratio") if s.detail.get("early", True)]
        ratios = [typical_matrix(signals.find("optimizer.lr_to_rms")), typical_matrix(early)]
        found = [s for s in ratios if s is not None]
        losses = signals.find("loss")
        if not found and not losses:
            raise NotEvaluable(signals.why_missing("optimizer.lr_to_rms"))
        if found and max(s.value for s in found) > self.warn_ratio:
            worst = max(found, key=lambda s: s.value)
            yield self._ratio(worst)
            return
        for loss in losses:
            best, start = loss.detail.get("best"), loss.detail.get("start")
            if (
                isinstance(best, (int, float))
                and isinstance(start, (int, float))
                and best > 0
                and _risen(loss.value, best, start, self.loss_rise)
            ):
                yield self.finding(
                    f"the loss ended at {loss.value:.3g} after it had reached {best:.3g}: the run lost what it had learned. Divide the "
                    "learning rate by 3.",
                    severity="warning",
                    limit=self.loss_rise * best,
                    signal=loss,
                )

    def _ratio(self, worst: Signal) -> Finding:
        severe = worst.value > self.error_ratio
        what = "Adam's first steps move" if worst.name == "optimizer.lr_to_rms" else "early updates moved"
        lr = worst.detail.get("lr")
        rate = f" (lr {lr:g})" if isinstance(lr, (int, float)) else ""
        return self.finding(
            f"{what} the weights by {percent(worst.value)} of their size per step{rate}; above {percent(self.warn_ratio)} training "
            "becomes unstable. Divide the learning rate by 3 and warm up.",
            severity="error" if severe else "warning",
            limit=self.error_ratio if severe else self.warn_ratio,
            signal=worst,
        )


def _risen(last: float, best: float, start: float, factor: float) -> bool:
    return not last <= factor * best and not last <= start
