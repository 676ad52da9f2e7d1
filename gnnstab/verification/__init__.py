"""Proof: fixes applied to copies and judged on the user's own model."""

from gnnstab.verification._proof import prove as prove
from gnnstab.verification._protocol import verify as verify
from gnnstab.verification._verdict import Verdict as Verdict
from gnnstab.verification.interventions import undo as undo

__all__ = ["Verdict", "prove", "undo", "verify"]
