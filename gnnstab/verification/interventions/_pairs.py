"""Two suspects undone together, where a symptom has two roots and neither, undone alone, brings it back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace

from torch import nn

from gnnstab.verification.interventions._investigation import CONTRIBUTES, ROOT, Tried
from gnnstab.verification.interventions._trial import Edit, Trial

MOST_PARTNERS = 4
"""Suspects that are undone together with the best one; each costs a look."""

_Change = Callable[[nn.Module], AbstractContextManager[nn.Module]]


def pairs(tried: Sequence[Tried], symptoms: int) -> Iterator[Trial]:
    """For each symptom that no suspect alone brings back: the best one together with each of the others.

    Both deviate from their references by measurement: of what is merely configured any two could be named.
    """
    seen: set[tuple[str, str]] = set()
    for i in range(symptoms):
        known = sorted(
            (one for one in tried if one.trial.deviates and not math.isnan(one.shares[i])),
            key=lambda one: -one.shares[i],
        )
        if len(known) < 2 or any(one.shares[i] >= ROOT for one in tried):
            continue
        lead = known[0]
        for other in [one for one in known[1:] if one.trial.cause != lead.trial.cause][:MOST_PARTNERS]:
            both = _both(lead, other, i)
            names = (lead.trial.words, other.trial.words)
            if both is not None and names not in seen:
                seen.add(names)
                yield both


def needs_both(both: Tried, tried: Sequence[Tried]) -> bool:
    """True where the two together are the root of a symptom, and each does what the other does not."""
    alone = [one.shares for one in tried if one.trial.cause in (both.trial.cause, both.trial.also)]
    for i, share in enumerate(both.shares):
        known = [shares[i] for shares in alone if not math.isnan(shares[i])]
        if known and share >= ROOT and share - max(known) >= CONTRIBUTES:
            return True
    return False


def _both(lead: Tried, other: Tried, i: int) -> Trial | None:
    edit = _joined(lead.trial.edit, other.trial.edit)
    if edit is None:
        return None
    first, second = lead.trial, other.trial
    words = f"{first.words} ({_alone(lead, i)}) and {second.words} ({_alone(other, i)})"
    suspect = f"{first.suspect}. {second.suspect[0].upper()}{second.suspect[1:]}"
    return replace(first, words=words, suspect=suspect, edit=edit, also=second.cause)


def _alone(tried: Tried, i: int) -> str:
    return f"alone {100 * max(0.0, tried.shares[i]):.0f} %"


def _joined(first: Edit, second: Edit) -> Edit | None:
    """Both edits in one; None where both replace the batch or the format, or scale the same scores or outputs."""
    replaced = (
        (first.batch is not None and second.batch is not None)
        or (first.precision and second.precision)
        or set(first.score_factors) & set(second.score_factors)
        or set(first.output_factors) & set(second.output_factors)
    )
    if replaced:
        return None
    changes = [edit.model for edit in (first, second) if edit.model is not None]
    return Edit(
        model=_in_turn(changes) if changes else None,
        batch=second.batch if first.batch is None else first.batch,
        precision=first.precision or second.precision,
        score_factors={**first.score_factors, **second.score_factors},
        output_factors={**first.output_factors, **second.output_factors},
        centred=first.centred | second.centred,
        pool_mean=first.pool_mean or second.pool_mean,
        hand_mean=first.hand_mean or second.hand_mean,
        unclamped=first.unclamped or second.unclamped,
    )


def _in_turn(changes: Sequence[_Change]) -> _Change:
    @contextmanager
    def changed(model: nn.Module) -> Iterator[nn.Module]:
        with ExitStack() as stack:
            for change in changes:
                model = stack.enter_context(change(model))
            yield model

    return changed
