"""GS605 absurd-weight."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from gnnstab.errors import NotEvaluable
from gnnstab.records import Finding, Signal, Signals
from gnnstab.records.vocabulary import LOSS_OVER_ZERO, PLACE_ZERO_WEIGHTS, WEIGHT_RMS
from gnnstab.rules._silent_by_design import unread
from gnnstab.rules.base import Rule, first_of_each_layer, rule, threshold
from gnnstab.rules.learned import came_down
from gnnstab.rules.queries import largest, measured, names, smallest


@rule("GS605", "absurd-weight", cause="uninitialized-parameter", severity="error", confidence="high")
class AbsurdWeight(Rule):
    """A parameter is finite, and larger than anything that an initialisation or an optimizer makes; or all weights are 0.

    ## Why it matters
    `torch.empty` hands out memory as it was, anything up to 1e38: finite garbage passes every check for NaN, a tanh or
    a softmax behind it keeps the output finite, and nothing trains through it. No documented initialisation has an RMS
    above 3, and Adam moves an entry by about its learning rate per step. Where every weight is 0 no input reaches the
    output, and behind a matrix of zeros no gradient reaches another one: nothing ever leaves 0 but a bias.

    ## What to do
    Initialise it: `conv.reset_parameters()`, or `torch.nn.init.xavier_uniform_(p)`. Look for `torch.empty`, for
    parameters that a custom initialisation leaves out, and for shapes that a partly loaded checkpoint did not fill.

    ## How it is measured
    The RMS of weights and of biases, in a network at least a quarter of whose parameters are of ordinary size; in a run
    only of what was as large at step 0. Biases, and weights outside of attention, may hold large units: they count from
    a million on, or, as a warning, from a thousand on where the loss of your batch is more than 100 times that of an
    output of zeros. That every weight is 0: all matrices and all parameters of attention layers, of two matrices at least.

    ## When it is silent
    Where the whole network is that large: a run has diverged instead. It is information where the forward never reads
    the parameter. Where the layer was run on your data and what it
    returned is finite and below 1000, it is information, up to an RMS of a million. Parameters may hold quantities in
    large units on purpose; where targets do, the loss of zeros is as large.

    ## Sources
    PyTorch documentation of `torch.empty`; Glorot and Bengio 2010 for the size of an initial weight. Derived.
    """

    rms: float = threshold(1e3, unit="RMS", source="derived: 300 times the largest initialisation in use")
    offset: float = threshold(
        1e6,
        unit="RMS of a bias, and in a file of a weight outside of attention",
        source="heuristic: an offset in large units is legal, and what it costs is rounding (GS501)",
    )
    ordinary: float = threshold(
        100.0, unit="RMS, lower quartile over parameters", source="heuristic: above it the whole network has diverged"
    )

    lost: float = threshold(
        100.0,
        unit="× the loss of zeros",
        source="heuristic: .5 to 1.5 in fresh networks of usual initialisation, far below 1 in trained ones",
    )
    """Loss of the output from which on large units excuse no parameter: what it does to the output is of no use."""

    def check(self, signals: Signals) -> Iterator[Finding]:
        """One finding per layer; each lists all of them."""
        found = signals.find("weight.rms")
        if not found:
            raise NotEvaluable(signals.why_missing("weight.rms"))
        weights = [s for s in found if str(s.detail.get("parameter", "")).endswith("weight")]
        if len(weights) > 1 and not any(s.value for s in weights):
            if not signals.find(PLACE_ZERO_WEIGHTS):  # GS201 names them, with their gradients.
                yield self._nothing(weights)
            return
        lost = self._lost(signals)
        absurd = [s for s in found if s.value > self._limit(s, lost) and not self._has_grown(s, lost)]
        useless = [s for s in absurd if unread(signals, str(s.detail.get("parameter")))]
        absurd = [s for s in absurd if s not in useless]
        usual = sorted(s.value for s in found)[(len(found) - 1) // 4]
        if useless and usual <= self.ordinary:
            yield self._never_read(useless)
        if not absurd or usual > self.ordinary:
            return
        working = [s for s in absurd if s.value <= self.offset and self._works(signals, s)]
        if len(working) == len(absurd):
            yield self._large(largest(working))
            return
        absurd = [s for s in absurd if s not in working]
        worst = largest(absurd)
        listed = sorted({str(s.detail.get("parameter", s.layer)) for s in absurd})
        said = f"{names(listed)}: RMS {worst.value:.2g} where a quarter of all parameters lies below {usual:.2g}"
        if lost is not None:
            said += f", and the loss of the output is {lost:.3g} times that of an output of zeros"
        said += ", as with memory that was never initialised. Initialise it."
        for one in first_of_each_layer(sorted(absurd, key=lambda s: -s.value)):
            level = "error" if one.value > self._limit(one) else "warning"
            yield self.finding(said, severity=level, limit=self._limit(one, lost), signal=one)

    def _lost(self, signals: Signals) -> float | None:
        """The loss over that of an output of zeros, where it is far above 1 and steps do not bring it down; else None."""
        over = signals.find(LOSS_OVER_ZERO)
        least = smallest(over).value if over and not came_down(signals) else 0.0
        return least if self.lost < least < math.inf else None

    def _nothing(self, weights: Sequence[Signal]) -> Finding:
        return self.finding(
            f"every weight is 0, as {weights[0].detail['parameter']} is: nothing of the input reaches the output, and no gradient "
            "reaches a weight behind another. No weights were copied in here, or they were lost when they were saved. Initialise them, "
            "or load another state.",
            limit=0.0,
            name=WEIGHT_RMS,
            value=0.0,
        )

    def _never_read(self, useless: Sequence[Signal]) -> Finding:
        listed = sorted({str(s.detail.get("parameter", s.layer)) for s in useless})
        worst = largest(useless)
        return self.finding(
            f"{names(listed)}: RMS {worst.value:.2g}, as with memory that was never initialised, and the forward does not read it: nothing comes of it.",
            severity="info",
            limit=self._limit(worst),
            signal=worst,
        )

    def _large(self, worst: Signal) -> Finding:
        parameter = worst.detail.get("parameter", worst.layer)
        return self.finding(
            f"{parameter}: RMS {worst.value:.2g}, and its layer returns numbers of ordinary size on this data: large, and it works.",
            severity="info",
            limit=self._limit(worst),
            signal=worst,
            confidence="medium",
        )

    def _works(self, signals: Signals, signal: Signal) -> bool:
        """True when what the layer of this weight returned was measured and is of ordinary size."""
        if signal.layer is None:
            return False
        returned = measured(signals.find("output.rms", layer=signal.layer))
        return bool(returned) and all(s.value < self.rms for s in returned)

    def _has_grown(self, signal: Signal, lost: float | None) -> bool:
        """True for a parameter that began at an ordinary size: training has made it large, no memory."""
        return bool(signal.detail.get("first", math.inf) <= self._limit(signal, lost))

    def _limit(self, signal: Signal, lost: float | None = None) -> float:
        """The largest legal RMS, where the loss is ``lost`` or not known to be."""
        if lost is not None:
            return self.rms
        # A file does not tell the units in which a map outside of attention takes or returns its numbers.
        legal = signal.detail.get("plain") or str(signal.detail.get("parameter", "")).endswith("bias")
        return self.offset if legal else self.rms
