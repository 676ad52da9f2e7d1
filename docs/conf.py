"""Sphinx configuration."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import generate

import gnnstab

generate.write()

project = "gnnstab"
author = "The gnnstab developers"
copyright = "2026, the gnnstab developers"
release = version = gnnstab.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
# The tutorial is shown as it is stored; the tests run it, docs/notebook.py stores it anew.
nb_execution_mode = "off"
exclude_patterns = ["_build", "ci/*"]
html_theme = "furo"
html_title = "gnnstab"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_mock_imports = ["lightning"]  # the pages are built without the extras of the sinks
nitpicky = False
