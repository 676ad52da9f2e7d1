"""``python -m gnnstab``: the command line without its script on the path."""

from __future__ import annotations

from gnnstab.cli import main

if __name__ == "__main__":
    main()
