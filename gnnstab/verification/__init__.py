"""Proof: fixes applied to copies and judged on the user's own model.

The names are resolved on first use, so that a trace can be diagnosed without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gnnstab.plugins import on_first_use

if TYPE_CHECKING:
    from gnnstab.verification._proof import prove as prove
    from gnnstab.verification._protocol import verify as verify
    from gnnstab.verification._verdict import Verdict as Verdict
    from gnnstab.verification.interventions import undo as undo

__all__ = ["Verdict", "prove", "undo", "verify"]  # resolved by __getattr__

__getattr__ = on_first_use(__name__, _verdict="Verdict", _proof="prove", _protocol="verify", interventions="undo")
