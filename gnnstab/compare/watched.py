"""Which signals are compared: the direction in which each is dangerous, and the rule whose limit lies there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Watched:
    """How one signal is compared."""

    rises: bool
    """True when larger is worse."""

    floor: float
    """Growth counts only once the value is on the worse side of this: 0.001 → 0.01 of a share is no news."""

    rule: str | None = None
    """Rule whose limit lies in that direction."""

    limit: str | None = None
    """Name of that rule's threshold."""

    def growth(self, before: float, after: float) -> float:
        """Factor by which the value moved towards danger: 2 is twice as bad, 1 unchanged, 0.5 half as bad."""
        worse, better = (after, before) if self.rises else (before, after)
        if worse == better:
            return 1.0
        return abs(worse) / abs(better) if better else float("inf")

    def counts(self, value: float) -> bool:
        """True when the value is large enough, or low enough, for its growth to matter."""
        return abs(value) >= self.floor if self.rises else value <= self.floor


WATCHED: Mapping[str, Watched] = {
    "attention.entropy": Watched(False, 0.8, "GS301", "warn_entropy"),
    "attention.one_hot_share": Watched(True, 0.05, "GS301", "one_hot_share"),
    "score.max_abs": Watched(True, 5.0),
    "score.within_std": Watched(True, 0.5),
    "logit.spectral_qk": Watched(True, 0.3),
    "logit.frobenius": Watched(True, 0.5, "GS301", "free_frobenius"),
    "precision.rounding": Watched(True, 0.01, "GS501", "warn_rounding"),
    "precision.fp16_headroom": Watched(False, 100.0, "GS501", "overflow"),
    "input.rms": Watched(True, 2.0),
    "output.rms": Watched(True, 2.0),
    "aggregation.rms": Watched(True, 1.0, "GS401", "rms"),
    "gradient.ratio": Watched(True, 2.0, "GS204", "warn_ratio"),
    "gradient.norm": Watched(True, 1.0),
    "weight.rms": Watched(True, 0.1),
    "update.ratio": Watched(True, 0.01, "GS601", "warn_ratio"),
    "gate.saturated_share": Watched(True, 0.05, "GS104", "share"),
    "channels.dead_share": Watched(True, 0.1, "GS701", "share"),
    "tanh.saturated_share": Watched(True, 0.05, "GS702", "share"),
    "clip.share": Watched(True, 0.005, "GS703", "active"),
    "smoothness.relative": Watched(False, 0.3, "GS704", "relative"),
    "gain.value": Watched(True, 0.5),
    "gain.skip": Watched(True, 0.5),
}
"""Signal → how it is compared. The floors were set by hand: below them no rule of this project has anything to say."""
