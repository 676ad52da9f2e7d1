"""What a project asks of gnnstab: ``[tool.gnnstab]`` in pyproject.toml or ``[gnnstab]`` in setup.cfg."""

from gnnstab.config._files import load as load
from gnnstab.config._settings import Settings as Settings
from gnnstab.config._suppressions import Acceptance as Acceptance
from gnnstab.config._suppressions import Suppression as Suppression
from gnnstab.config._suppressions import accept as accept
