"""What a finding says while the run goes on: less is known than at its end, when suspects are undone on a copy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from gnnstab.characters import counted
from gnnstab.probe.attaching.forward_tracker import ForwardInputs
from gnnstab.probe.batches.named_tensors import named_tensors
from gnnstab.probe.batches.roles import columns, is_target, value_columns
from gnnstab.probe.places import rms
from gnnstab.probe.recorder import Recorder
from gnnstab.records import Finding
from gnnstab.rules.gs406_feature_scale import FeatureScale

_RATE, _RATE_RULE = "learning-rate", "GS601"

ENTER_IT = "put the training loop inside `with Monitor(...) as monitor:`"


def nothing_yet(recorder: Recorder, begun: bool, has_optimizer: bool) -> tuple[str, ...]:
    """Why there is nothing to judge before the first step has ended, and what will be watched; empty after it."""
    if recorder.row is not None:
        return ()
    if not begun:
        return (f"nothing was recorded: the monitor was not entered; {ENTER_IT}",)
    watched = sum(facts.attention for facts in recorder.notes.facts())
    layers = counted(watched, "attention layer")
    how = "run the training inside `with monitor:`" + ("" if has_optimizer else " and call monitor.step()")
    return (f"nothing was recorded: no step has ended while the monitor watched {layers}; {how}",)


def told(finding: Finding, recorder: Recorder) -> Finding:
    """The finding as the running training tells it.

    Steps that go too far look alike whether the rate is too high or the data is too large: where an input is beyond the limit
    of GS406, the warning names it beside the rate.
    """
    message = finding.message.replace("cause not established", "cause not known yet, the report may tell")
    kept = recorder.kept if finding.cause == _RATE else None
    large = None if kept is None else _largest_input(recorder.model, kept)
    if large is not None:
        name, size = large
        message += (
            f" The input `{name}` has RMS {size:.3g} (GS406 begins at {FeatureScale.rms:g}), which makes usual rates too high: "
            "look at its scale first."
        )
    return replace(finding, message=message)


FOLLOWS = ("GS301", "GS302", "GS603", "GS607")
"""Rules of what a rate that is too high brings about: scores, gradients and outputs that grow."""

LATELY = 100
"""Steps after a finding about the rate within which these follow from it."""

WORSE = 10.0
"""× how far the rate was beyond its limit when it was told, from which on it is told again."""


class Repeats:
    """Keeps warnings back that say again what was said: a rate that is too high shows in the loss, in every layer's output and in every score."""

    def __init__(self) -> None:
        self._told, self._last = 0.0, -math.inf

    def news(self, fresh: Sequence[Finding]) -> list[Finding]:
        """Those of one moment that are to be printed, in their order; the trace keeps all of them."""
        kept = [finding for finding in fresh if finding.code != _RATE_RULE or self._is_news(finding)]
        return [finding for finding in kept if finding.code not in FOLLOWS or not self._follows(finding)]

    def _is_news(self, finding: Finding) -> bool:
        self._last = max(self._last, finding.step or 0)
        beyond = finding.value / finding.threshold if finding.threshold > 0 else math.inf
        beyond = beyond if beyond > 0 else math.inf  # NaN
        if self._told and not beyond > WORSE * self._told:
            return False
        self._told = beyond
        return True

    def _follows(self, finding: Finding) -> bool:
        return self._last <= (finding.step or 0) <= self._last + LATELY


def in_words(fresh: Sequence[Finding]) -> list[str]:
    """What to warn of: one text per rule and signal, which names the further layers of which the same is true.

    A finding about no layer, or once more about the same one, has a text of its own.

    Args:
        fresh: Findings of one moment, in their order.
    """
    alike: dict[tuple[str, str], list[Finding]] = {}
    texts: list[list[Finding]] = []
    for finding in fresh:
        same = alike.setdefault((finding.code, finding.signal), [])
        if not same or not finding.layer or finding.layer in {one.layer for one in same}:
            texts.append(same if not same and finding.layer else [])
            texts[-1].append(finding)
        else:
            same.append(finding)
    return [_one_text(same) for same in texts]


def _one_text(same: Sequence[Finding]) -> str:
    first, layers = same[0], [finding.layer or "" for finding in same[1:]]
    rest = len(layers) - 3
    left = f" and {rest} more layer{'s' if rest > 1 else ''}" if rest > 0 else ""
    more = f" Alike in {', '.join(layers[:3])}{left}." if layers else ""
    return f"{first.code} {first.name}: {first.message}{more}"


def _largest_input(model: nn.Module, kept: ForwardInputs) -> tuple[str, float] | None:
    """Name and RMS of the largest measured input beyond the limit of GS406."""
    given = named_tensors(kept.args, kept.kwargs, model=model).items()
    judged = {name: t for name, t in given if t.layout is torch.strided and not is_target(name)}
    sizes = {name: rms(columns(t)[:, value_columns(t)]) for name, t in judged.items()}
    beyond = {name: size for name, size in sizes.items() if size > FeatureScale.rms}
    return max(beyond.items(), key=lambda item: item[1], default=None)
