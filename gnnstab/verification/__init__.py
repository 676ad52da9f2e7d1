"""Proof: fixes applied to copies and judged on the user's own model."""

from gnnstab.verification.interventions import undo as undo
from gnnstab.verification.proof import prove as prove
from gnnstab.verification.protocol import verify as verify
from gnnstab.verification.verdict import Verdict as Verdict

__all__ = ["Verdict", "prove", "undo", "verify"]
