"""Write constraints.txt from the environment that the tests just passed in: python docs/constraints.py > constraints.txt."""

from __future__ import annotations

import subprocess
import sys

HEADER = """\
# The versions that the tests last passed with; setup.cfg holds the wide ranges. Written by docs/constraints.py.
# The newest numpy and scipy need Python 3.11, so on 3.10 pip is left to choose within the ranges.
"""


def main() -> None:
    """Print one pinned line per installed distribution, gnnstab itself left out."""
    frozen = subprocess.run(
        [sys.executable, "-m", "pip", "freeze", "--exclude-editable"], capture_output=True, text=True, check=True
    )
    print(HEADER, end="")
    for line in sorted(frozen.stdout.splitlines(), key=str.lower):
        name, separator, version = line.partition("==")
        if not separator:
            continue
        # A local version such as +cpu names a build, which differs from machine to machine.
        version = version.partition("+")[0]
        marker = "" if name == "torch" else ' ; python_version >= "3.11"'
        print(f"{name}=={version}{marker}")


if __name__ == "__main__":
    main()
