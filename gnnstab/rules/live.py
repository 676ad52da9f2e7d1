"""Rules that follow a run step by step and speak before values become non-finite.

Everything here is O(series) per step and keeps a fixed number of values per series; the thresholds are those of the
rules whose codes the findings bear, and a few of this file for what only a run can show.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import lt
from typing import TYPE_CHECKING

import numpy as np

from gnnstab.records import Finding, SeriesKey, Signal, Signals
from gnnstab.records.rises import Nearing, Overshoot, falling, spike_floor
from gnnstab.records.vocabulary import OPTIMIZER_OUTPUT_MOVE
from gnnstab.rules._live_limits import LiveLimits
from gnnstab.rules._tracks import ONE_HOT, WARM_UP, WINDOW, Blocks, Quiet, Track, median, series_of
from gnnstab.rules.beginning import Beginning, Overshoots, Rates
from gnnstab.rules.gs301_attention_explosion import AttentionExplosion
from gnnstab.rules.gs501_precision_headroom import UNIT_ROUNDOFF, PrecisionHeadroom
from gnnstab.rules.gs601_learning_rate_too_high import LearningRateTooHigh
from gnnstab.rules.gs603_gradient_spike import GradientSpike
from gnnstab.rules.gs606_rate_jump import RateJump
from gnnstab.rules.gs607_steady_growth import SteadyGrowth
from gnnstab.rules.queries import times
from gnnstab.signals.fitting import BLOCK, LASTS, shared_growth
from gnnstab.signals.optimisation import BESIDE, FIRST, JUMP

if TYPE_CHECKING:
    from numpy.typing import NDArray

FALLEN = 0.9
"""Share of the first losses after a rise below which the latest ones come down: less is the scatter of batches."""


class LiveEngine:
    """Judges a run while it goes on; each finding is raised once, with its step.

    Args:
        precision: ``fp32``, ``fp16`` or ``bf16``: the format that the attention is computed in.
        channels: Layer → channels per head, for the fp16 limit of q·k; 1 where unknown.
        usual: The highest rate that is usual for the optimizer; 0 where it is not known.
    """

    def __init__(self, precision: str = "fp32", channels: Mapping[str, int] | None = None, usual: float = 0.0) -> None:
        self._limits = LiveLimits()
        self._spike = GradientSpike()
        self._rate = LearningRateTooHigh()
        self._precision = PrecisionHeadroom()
        self._attention = AttentionExplosion()
        self._steady = SteadyGrowth()
        self._format = precision
        self._channels = dict(channels or {})
        self._tracks: dict[SeriesKey | str, Track] = {}
        self._raised: set[tuple[str, str, str]] = set()
        self._quiet, self._blocks = Quiet(), Blocks()
        self._quiet_below = min(self._limits.score_floor, self._limits.jump_floor) if precision == "fp32" else 0.0
        self._beginning = Beginning(self._rate)
        self._overshoots = Overshoots(self._rate)
        self._rates = Rates(RateJump(), usual)
        self._spikes: deque[int] = deque(maxlen=16)
        self._warming, self._skipped, self._rate_before = True, False, -math.inf

    def update(
        self,
        step: int,
        keys: Sequence[SeriesKey],
        sizes: NDArray[np.float64],
        *,
        loss: float | None = None,
        lr: float | None = None,
        grad_norm: float | None = None,
        moved: float | None = None,
        overshoot: Overshoot | None = None,
        skipped: bool = False,
    ) -> list[Finding]:
        """Take one step in and return what is new.

        Args:
            step: The step.
            keys: The series of kind ``score`` and ``output`` that were recorded; the same object whenever they are the same.
            sizes: (K,) max|s| of a score, RMS of an output, in float64.
            loss: Training loss.
            lr: Learning rate, for the wording.
            grad_norm: L2 norm over all parameter gradients.
            moved: Change of the output by the update of this step over its spread, where it was measured.
            overshoot: The last update along which rate × curvature was measured.
            skipped: True when a GradScaler skipped the step; its gradients are then left out.
        """
        self._beginning.moved(moved)
        found = self._sites(step, keys, sizes)
        self._warming = self._warming and lr is not None and lr > self._rate_before
        self._rate_before = -math.inf if lr is None else lr
        if grad_norm is not None and not skipped:
            found += self._gradient(step, grad_norm, self._warming)
        found += self._rates.rate(step, lr)
        if overshoot is not None:
            overshot = list(self._overshoots.measured(overshoot, lr))
            found += overshot if overshoot.alone or not self._falling() else []
        return [f for f in found if self._first_time(f)] + ([] if loss is None else self.loss(step, loss, lr, skipped))

    def rate(self, step: int, lr: float | None) -> list[Finding]:
        """Take in the learning rate of a step of which nothing else is to be told."""
        return [finding for finding in self._rates.rate(step, lr) if self._first_time(finding)]

    def tried(self, rise: Signal, moved: float | None) -> list[Finding]:
        """Take in how far trial steps before the first update raised the loss, and by how much one moves the output."""
        values = (rise,) if moved is None else (rise, Signal(OPTIMIZER_OUTPUT_MOVE, moved, source="training"))
        self._beginning.tried(rise)
        found = self._rate.check(Signals(kind="trace", layers=(), values=values))
        return [finding for finding in found if self._first_time(finding)]

    def recorded(self) -> Signals:
        """What is known of the run so far: the last values of every series, what trial steps showed, how far updates moved the output."""
        self._quiet.hand_over(self._tracks)
        self._quiet.keys = ()
        return Signals("trace", (), self._beginning.told, series_of(self._tracks))

    def nearing(self, news: Iterable[Nearing]) -> list[Finding]:
        """Take in what comes close to an end of its number format."""
        return [f for near in news for f in self._precision.nearing(near) if self._first_time(f)]

    def loss(self, step: int, loss: float, lr: float | None = None, skipped: bool = False) -> list[Finding]:
        """Take in the loss of a step that came after the step, and return what is new."""
        alone, self._skipped = skipped and not self._skipped, skipped
        if alone:
            return []  # The weights are what they were: the next loss says whether it was the batch.
        found = list(self._loss(step, loss, lr))
        if step <= FIRST and not found and not any(code == self._rate.code for code, _, _ in self._raised):
            found = list(self._beginning.loss(step, loss, lr))
        return [finding for finding in found if self._first_time(finding)]

    def _sites(self, step: int, keys: Sequence[SeriesKey], sizes: NDArray[np.float64]) -> list[Finding]:
        quiet = self._quiet
        if not len(keys):
            return []
        # At nearly every step of a healthy run this one comparison is all: below it no rule has anything to say.
        if keys is quiet.keys and all(map(lt, sizes.tolist(), quiet.limits)):
            quiet.add(step, sizes)
            return []
        quiet.hand_over(self._tracks)
        quiet.keys = ()
        found: list[Finding] = []
        for key, size in zip(keys, sizes.tolist(), strict=True):
            found += self._scores(step, key, size) if key.site == "score" else self._activation(step, key, size)
        tracks = [self._tracks.get(key) for key in keys]
        if all(track is not None and track.ready for track in tracks):
            quiet.keys = keys
            known = zip(keys, tracks, strict=True)
            quiet.limits = [self._quiet_limit(key, track) for key, track in known if track is not None]
        return found

    def _quiet_limit(self, key: SeriesKey, track: Track) -> float:
        """The size from which a rule may have something to say of a series."""
        grown = 0.0 if key.site == "score" or not track.start else self._steady.grown(track.start)
        return min(self._quiet_below, grown or math.inf)

    def _first_time(self, finding: Finding) -> bool:
        # What was information may become a warning later on.
        mark = (finding.code, finding.layer or "", f"{finding.signal} {finding.severity == 'info'}")
        if mark in self._raised:
            return False
        self._raised.add(mark)
        return True

    def _track(self, step: int, key: SeriesKey | str, value: float) -> Track | None:
        """The series with the value added; None for a non-finite value, which is an event of its own."""
        if not math.isfinite(value):
            return None
        track = self._tracks.get(key)
        if track is None:
            track = self._tracks[key] = Track()
        track.add(step, value)
        return track

    def _scores(self, step: int, key: SeriesKey, size: float) -> Iterator[Finding]:
        track = self._track(step, key, size)
        if track is None:
            return
        limits = self._limits
        grown = size > limits.score_floor and size > limits.score_factor * track.start
        if not grown and self._format == "fp32":
            return  # The fit is the expensive part, and at every healthy step nothing asks for it.
        growth = track.lasting_growth(LASTS, WARM_UP + 1) if grown else 0.0
        yield from self._headroom(step, key.layer, track)
        steady, jumped = growth > limits.score_growth, self._jumped(track, size)
        if steady or jumped:
            # While the loss falls, a softmax of such scores still hands a gradient back.
            bears = self._learning() or (size < ONE_HOT and self._falling())
            first = track.start if track.ready else track.before
            pace = f", and grows by {100 * math.expm1(min(growth, 50.0)):.2g} % per step" if steady else ""
            yield self._attention.finding(
                f"{key.layer}: at step {step} the largest |score| is {size:.3g}, {times(size / max(first, 1e-12))} times that of the steps "
                f"before{pace}. Lower the learning rate, or cap the scores.",
                severity="info" if (track.gap > WINDOW or not jumped) and bears else "warning",
                limit=limits.score_growth if steady else limits.jump,
                name="score.growth",
                value=math.expm1(min(growth, 50.0)) if steady else size / max(first, 1e-12),
                layer=key.layer,
                step=step,
                unit="per step" if steady else "× before",
                confidence="medium",
            )

    def _learning(self) -> bool:
        """True while the loss is learned: what grows then is being learned, and gradients jump."""
        track = self._tracks.get("loss")
        return track is not None and track.learned(int(self._limits.loss_lasts))

    def _falling(self) -> bool:
        track = self._tracks.get("loss")
        return track is not None and falling(list(track.values))

    def _headroom(self, step: int, layer: str, track: Track) -> Iterator[Finding]:
        size = track.values[-1]
        if self._format not in ("fp16", "bf16") or size <= 0:
            return
        rounding = size * UNIT_ROUNDOFF[self._format]
        if rounding >= self._precision.warn_rounding:
            severe = rounding >= self._precision.error_rounding
            # The loss of this step comes behind its scores, and that of eleven tells.
            bears = len(track.values) < WARM_UP + 2 or self._learning() or self._falling()
            yield self._precision.finding(
                f"{layer}: at step {step} the largest logit ({size:.3g}) is rounded by {rounding:.2g} in {self._format}. Keep query, key "
                "and softmax in fp32.",
                severity="info" if bears else "error" if severe else "warning",
                limit=self._precision.error_rounding if severe else self._precision.warn_rounding,
                name="precision.rounding",
                value=rounding,
                layer=layer,
                step=step,
            )
        if self._format == "fp16":
            yield from self._overflow(step, layer, track)

    def _overflow(self, step: int, layer: str, track: Track) -> Iterator[Finding]:
        size = track.values[-1]
        headroom = 65504 / (size * math.sqrt(self._channels.get(layer, 1)))
        growth = track.lasting_growth() if headroom > 1 else 0.0
        left = math.log(headroom) / growth if growth > 0 else math.inf
        if headroom <= self._precision.overflow or left < self._limits.projected_steps:
            when = "now" if headroom <= 1 else f"in about {left:.0f} steps at the present growth"
            yield self._precision.finding(
                f"{layer}: q·k reaches fp16's 65 504 {when} (headroom {headroom:.2g}×, step {step}): Inf − Inf in the softmax is NaN. "
                "Keep query, key and softmax in fp32.",
                severity="error",
                limit=self._precision.overflow,
                name="precision.fp16_headroom",
                value=headroom,
                layer=layer,
                step=step,
                unit="×",
            )

    def _activation(self, step: int, key: SeriesKey, rms: float) -> Iterator[Finding]:
        track = self._track(step, key, rms)
        if track is None:
            return
        # What begins at zero grows in any case, by no number of times.
        if track.start > 0 and rms >= track.before and rms > self._steady.grown(track.start):
            stands = "loss" in self._tracks and not (self._learning() or self._falling())
            growth = track.lasting_growth() if stands else 0.0
            yield from self._steady.output(key.layer, step, rms / track.start, math.expm1(min(growth, 50.0)))
        if self._jumped(track, rms):
            yield self._rate.finding(
                f"{key.layer}: at step {step} its output has RMS {rms:.3g}, {times(rms / track.before)} times everything before. "
                f"{self._beginning.lower(self._rate_before)}",
                severity="error",
                limit=self._limits.jump * track.before,
                name="output.rms",
                value=rms,
                layer=key.layer,
                step=step,
            )

    def _jumped(self, track: Track, value: float) -> bool:
        return track.before > 0 and value > self._limits.jump * track.before and value > self._limits.jump_floor

    def _gradient(self, step: int, norm: float, warming: bool) -> Iterator[Finding]:
        track = self._track(step, "gradient.norm", norm)
        # The median is the expensive part, and never below the smallest.
        if track is None or not track.ready or norm <= self._spike.ratio * min(track.values) or track.middle <= 0:
            return
        middle = track.middle
        ratio, floor = norm / middle, spike_floor(track.first, middle, self._spike.ratio)
        # Close to convergence the median is tiny, and a norm ten times as large is still less than training began with.
        if ratio <= self._spike.ratio or norm <= floor or not self._sudden(step, norm, track, warming):
            return
        if self._falling() or self._learning():
            return
        self._spikes.append(step)
        lately = [s for s in self._spikes if s > step - 5 * WINDOW]
        # One spike may be a hard batch. Several, or one that lasts, are not.
        if len(lately) >= self._spike.times:
            yield self._spike.finding(
                f"at step {step} the gradient norm is {times(ratio)} times its running median, number {len(lately)} of its kind in "
                f"{5 * WINDOW} steps. Clip at the 90th percentile of its history, or lower the learning rate.",
                severity="warning",
                limit=self._spike.ratio,
                name="gradient.spike",
                value=ratio,
                step=step,
                unit="× running median",
            )

    def _sudden(self, step: int, norm: float, track: Track, warming: bool) -> bool:
        """False for a norm that has risen slowly, or in the warm-up of the rate to no more than ten times all but the last few."""
        before, beside = list(track.values)[: -BESIDE - 1], list(track.values)[-BESIDE - 1 : -1]
        if warming and norm <= self._spike.ratio * max(before):
            return False
        lasts = bool(self._spikes) and step - self._spikes[-1] <= 1
        return lasts or norm > JUMP * median(beside)

    def _loss(self, step: int, loss: float, lr: float | None) -> Iterator[Finding]:
        track = self._track(step, "loss", loss)
        if track is None:
            return
        yield from self._together(step, track)
        # A loss that can be negative, as in reinforcement learning, has no meaningful ratio.
        if track.lowest <= 0:
            return
        pace = self._blocks.growth(step, loss)
        if pace > 0 and self._steeper():
            yield from self._steady.objective(step, loss, pace)
        jumped = self._jumped(track, loss)
        if jumped or self._risen(track):
            rate = self._beginning.lower(lr, "" if lr is None else f" (lr {lr:g})")
            best = track.before if jumped else track.best
            yield self._rate.finding(
                f"at step {step} the loss is {loss:.3g} after {'at most' if jumped else 'it had reached'} {best:.3g}: training is "
                f"diverging. {rate}",
                severity="error" if jumped else "warning",
                limit=best * (self._limits.jump if jumped else self._limits.loss_factor),
                name="loss",
                value=loss,
                step=step,
            )

    def _steeper(self) -> bool:
        """True while the gradient norm lies above its start; where it is clipped it grows no further."""
        norm = self._tracks.get("gradient.norm")
        return norm is not None and norm.ready and median(list(norm.values)[-BLOCK:]) > norm.start

    def _together(self, step: int, loss: Track) -> Iterator[Finding]:
        """The loss and the gradient grow at a steady pace: a positive loss away from its minimum, a negative one without bound."""
        norm = self._tracks.get("gradient.norm")
        if norm is None:
            return
        pace, own = shared_growth((loss.steps, loss.values), (norm.steps, norm.values), (loss.start, norm.start))
        if pace > 0:
            yield from self._steady.objective(step, loss.values[-1], pace, own)

    def _risen(self, track: Track) -> bool:
        """True when all of the latest losses lie far above the best and above the start, and do not come down again."""
        if not track.ready:
            return False
        values, lasts = list(track.values), int(self._limits.loss_lasts)
        recent = values[-lasts:]
        track.best = min(track.best, median(values[-2 * lasts :]))
        limit = max(self._limits.loss_factor * track.best, track.start)
        if min(recent) <= limit:
            return False
        # New classes or a second task raise the loss at once, and training brings it down from there.
        since = values[next((i + 1 for i in reversed(range(len(values))) if values[i] <= limit), 0) :]
        back = median(recent) < FALLEN * median(since[:lasts]) if len(since) >= 2 * lasts else recent[-1] < max(recent)
        return not back
