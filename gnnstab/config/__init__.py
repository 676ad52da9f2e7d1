"""What a project asks of gnnstab: ``[tool.gnnstab]`` in pyproject.toml or ``[gnnstab]`` in setup.cfg."""

from gnnstab.config.accepting import Acceptance as Acceptance
from gnnstab.config.accepting import Suppression as Suppression
from gnnstab.config.accepting import accept as accept
from gnnstab.config.files import load as load
from gnnstab.config.settings import Settings as Settings
