"""Write the generated pages: one per rule from its docstring, the table of all rules, and the README's help block.

python docs/generate.py           writes them
python docs/generate.py --check   exits 1 when one on disk differs
"""

from __future__ import annotations

import io
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from unittest.mock import patch

from gnnstab.cli.group import run
from layer_table import rows

from gnnstab.rules import RULES
from gnnstab.rules.pages import page, summary

DOCS = Path(__file__).resolve().parent
README = DOCS.parent / "README.md"
LAYERS = DOCS / "layers.md"
BEGIN, END = "<!-- help:begin -->", "<!-- help:end -->"


def pages() -> dict[Path, str]:
    """Path → text of every generated page."""
    made = {DOCS / "rules" / f"{rule.code}.md": page(rule.code).rstrip() + "\n" for rule in RULES}
    made[DOCS / "rules" / "index.md"] = index()
    made[README] = readme()
    made[LAYERS] = layers()
    return made


def index() -> str:
    """The table of all rules."""
    lines = [
        "# Rules",
        "",
        "Every rule, generated from its docstring, with its highest severity. `gnnstab explain CODE -v` prints the same page.",
        "",
        "| rule | meaning | severity |",
        "| --- | --- | --- |",
    ]
    lines += [
        f"| [{rule.code}]({rule.code}.md) {rule.name} | {summary(rule.code)} | {rule.severity} |" for rule in RULES
    ]
    toctree = ["", "```{toctree}", ":hidden:", "", *(rule.code for rule in RULES), "```", ""]
    return "\n".join(lines + toctree)


def layers() -> str:
    """The page of all kinds of attention with the table as the adapters tell it now."""
    before, _, rest = LAYERS.read_text(encoding="utf-8").partition("<!-- layers:begin -->")
    _, _, after = rest.partition("<!-- layers:end -->")
    return f"{before}<!-- layers:begin -->\n\n{rows()}\n\n<!-- layers:end -->{after}"


def readme() -> str:
    """The README with the help text as the program prints it now."""
    text = README.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    shown = help_text().rstrip()
    return f"{before}{BEGIN}\n\n```text\n{shown}\n```\n\n{END}{after}"


def help_text() -> str:
    """What ``gnnstab --help`` prints, whatever the width of this terminal."""
    stream = io.StringIO()
    with redirect_stdout(stream), patch.dict(os.environ, COLUMNS="80"):
        run(["--help"])
    return stream.getvalue()


def write() -> None:
    """Write every page that differs."""
    for path, text in pages().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def main() -> int:
    """Write, or with --check compare."""
    if "--check" not in sys.argv[1:]:
        write()
        return 0
    stale = [p for p, text in pages().items() if not p.exists() or p.read_text(encoding="utf-8") != text]
    for path in stale:
        print(f"{path.relative_to(DOCS.parent)} is not what the code says; run: python docs/generate.py")
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
