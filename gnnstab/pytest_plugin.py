"""pytest plugin (see gnnstab.testing)."""
