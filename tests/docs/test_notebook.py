"""The tutorial notebook runs, and what is stored of it is what such a run shows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
RUN = """
import json, sys
sys.path.insert(0, sys.argv[1])
import nbformat, notebook
print(json.dumps(notebook.executed()))
"""


def stored() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DOCS / "tutorial.ipynb").read_text(encoding="utf-8"))
    return found


def code(book: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in book["cells"] if cell["cell_type"] == "code"]


def shown(cell: dict[str, Any]) -> set[str]:
    """The kinds of output of a cell: numbers differ in their last digits from machine to machine."""
    return {kind for output in cell["outputs"] for kind in output.get("data", {output.get("name"): None})}


@pytest.mark.slow
def test_every_cell_runs_and_shows_what_is_stored() -> None:
    # In a process of its own: the kernel's libraries raise warnings, which are errors here.
    done = subprocess.run([sys.executable, "-c", RUN, str(DOCS)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    run = json.loads(done.stdout)
    assert [shown(cell) for cell in code(run)] == [shown(cell) for cell in code(stored())]
    page = next(
        o["data"]["text/html"] for cell in code(run) for o in cell["outputs"] if "text/html" in o.get("data", {})
    )
    assert "sum aggregation" in "".join(page)


def test_what_is_stored_is_whole_small_and_of_no_machine() -> None:
    book = stored()
    assert [cell["execution_count"] for cell in code(book)] == list(range(1, len(code(book)) + 1))
    kinds = set().union(*(shown(cell) for cell in code(book)))
    assert kinds == {"stdout", "text/plain", "text/html", "image/png"}
    assert "stderr" not in kinds
    assert book["metadata"] == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    }
    text = json.dumps(book)
    assert len(text) < 500_000
    for place in ("/home/", "/tmp/", "/root", "site-packages", str(DOCS.parent)):
        assert place not in text
