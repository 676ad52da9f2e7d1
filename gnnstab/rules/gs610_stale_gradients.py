"""GS610 stale-gradients."""

from __future__ import annotations

from collections.abc import Iterator

from gnnstab.errors import NotApplicable
from gnnstab.records import Finding, Signals
from gnnstab.rules.base import Rule, rule, threshold


@rule("GS610", "stale-gradients", cause="stale-gradients", severity="warning", confidence="high")
class StaleGradients(Rule):
    """Every step of the optimizer uses the gradients of all steps before it: nothing clears them.

    ## Why it matters
    The sum of all gradients grows with the number of steps, and so does the update: a loss that falls at first, then
    swings wider and wider or rises, whatever the learning rate is.

    ## What to do
    `optimizer.zero_grad()` before each backward; with accumulation over k batches once after every step of the
    optimizer.

    ## How it is measured
    Under a Monitor that was given the optimizer: the gradient of one parameter over the first steps, in which each
    backward adds to exactly what the optimizer has just used.

    ## When it is silent
    With accumulation, where the optimizer moves once for several backwards, and where gradients are decayed instead of
    cleared. A loop that clears them now and then is told if three steps come without.

    ## Sources
    PyTorch, documentation of `torch.optim.Optimizer.zero_grad`. Measured: SGD and Adam, with accumulation, clipping and
    two optimizers.
    """

    steps: float = threshold(
        3, unit="steps in a row", source="heuristic: a loop that clears them now and then may miss one"
    )

    def check(self, signals: Signals) -> Iterator[Finding]:
        """One finding for the run."""
        told = signals.context.get("stale_gradients")
        if signals.kind != "trace" or told is None:
            raise NotApplicable("no optimizer was watched in a run")
        if told is not False:
            yield self.told(int(told))

    def told(self, step: int) -> Finding:
        """What to say of a run in which it was certain at this step."""
        return self.finding(
            f"each backward adds to the gradients of the steps before it (certain from step {step} on), and the optimizer uses their sum: nothing "
            "clears them. Call optimizer.zero_grad() before each backward; to accumulate over several batches, call it after every optimizer.step().",
            limit=self.steps, name="", value=self.steps, step=step, unit="steps in a row",
        )  # fmt: skip
