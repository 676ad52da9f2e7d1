"""The table of interventions, upstream first: where several restore a symptom alike, the earlier suspect counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gnnstab.verification.interventions import _suspects as suspects
from gnnstab.verification.interventions._factors import unit_factors
from gnnstab.verification.interventions._inputs import standardise_input
from gnnstab.verification.interventions._measuring import Look
from gnnstab.verification.interventions._trial import Case, Trial

Suspects = Callable[[Case, Look], Iterator[Trial]]
"""(case, what was measured without any edit) → the trials of one kind."""

INTERVENTIONS: tuple[Suspects, ...] = (
    standardise_input,
    suspects.full_precision,
    suspects.norms_told_of_graphs,
    suspects.divide_sums,
    # Before the gains: what the scores are multiplied by is not told a second time as weights in front of them.
    # And before the factors in the code: one that stands on q·k is a temperature.
    suspects.divide_products,
    suspects.unit_gains,
    unit_factors,
    suspects.rescale_queries,
    suspects.centred_units,
    suspects.identity_paths,
    suspects.post_norms,
    suspects.clamps_off,
)
