"""``python -m gnnstab``: the command line without its script on the path."""

from __future__ import annotations

from importlib import import_module

if __name__ == "__main__":
    import_module("gnnstab.cli").main()
