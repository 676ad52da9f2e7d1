"""Interventions: each suspect is undone on a copy and the symptoms are measured again; the share of the way back decides."""

from gnnstab.verification.interventions._inputs import as_batch as as_batch
from gnnstab.verification.interventions._undoing import undo as undo
