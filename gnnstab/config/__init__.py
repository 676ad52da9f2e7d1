"""What a project asks of gnnstab: ``[tool.gnnstab]`` in pyproject.toml or ``[gnnstab]`` in setup.cfg."""

from gnnstab.config.files import load as load
from gnnstab.config.settings import Settings as Settings
from gnnstab.config.suppressions import Acceptance as Acceptance
from gnnstab.config.suppressions import Suppression as Suppression
from gnnstab.config.suppressions import accept as accept
