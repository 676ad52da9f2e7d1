"""GS603 gradient-spike."""

from __future__ import annotations

from collections.abc import Iterator

from gnnstab.records import Finding, Signals
from gnnstab.rules.base import Rule, rule, threshold
from gnnstab.rules.queries import largest


@rule("GS603", "gradient-spike", cause="learning-rate", severity="warning", confidence="medium")
class GradientSpike(Rule):
    """The gradient norm jumps far above its running median, again and again.

    ## Why it matters
    A spike moves all weights at once; Adam's second moment, an average over some 1000 steps, needs long to notice.
    Sharp attention makes spikes likelier: a neighbour is swapped and the loss jumps.

    ## What to do
    `torch.nn.utils.clip_grad_norm_` at the 90th percentile of the history; a third of the learning rate; look for
    saturated attention (GS301, GS302).

    ## How it is measured
    The gradient norm of every step over the running median of the steps before it. Several jumps, or one from which the
    norm does not come back, are a warning; a single one that is over in a few steps is information.

    ## When it is silent
    For norms below that of the first ten steps (close to convergence the median is tiny) or equal to it, as clipped ones are, for norms up to ten times
    the largest of these where the median is below a thousandth of it (a policy that has learned has rare gradients), a norm that rose without a
    jump to three times the median of the five before it, one while the loss falls, or in the warm-up of the rate,
    unless it exceeds all but the last few before it tenfold, and steps that a GradScaler skips. Reinforcement learning
    changes its own data: in a run that ends at half of its first loss or below, jumps are information.

    ## Sources
    Pascanu et al. 2013, *On the Difficulty of Training Recurrent Neural Networks*, arXiv 1211.5063. Measured: 150-step
    runs.
    """

    ratio: float = threshold(
        10.0, unit="× running median", source="measured: none in 150 steps of healthy runs, 1 to 3 in failing ones"
    )
    times: float = threshold(3, unit="spikes", source="heuristic: one or two may be a hard batch")

    def check(self, signals: Signals) -> Iterator[Finding]:
        """One finding for the run."""
        spike = largest(signals.need("gradient.spike"))
        if not spike.value > self.ratio or not spike.detail.get("above_start", True):
            return
        times, recovered = max(1, int(spike.detail.get("count", 1))), bool(spike.detail.get("recovered", True))
        lasting = times >= self.times or not recovered
        at = "" if spike.step is None else f" at step {spike.step}"
        after = "" if recovered else " and did not come back"
        yield self.finding(
            f"the gradient norm rose to {spike.value:.3g} times its running median{at}{after}, {times} time{'s' if times > 1 else ''} "
            "in all. Clip at the 90th percentile of its history, or lower the learning rate.",
            severity="warning" if lasting else "info",
            limit=self.ratio,
            signal=spike,
        )
