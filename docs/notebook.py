"""Run the tutorial and keep its outputs: python docs/notebook.py

The site shows the notebook as it is stored, and so do readers that find it in the repository.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from unittest.mock import patch

import nbformat
from nbclient import NotebookClient

TUTORIAL = Path(__file__).resolve().parent / "tutorial.ipynb"

LANGUAGE = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
"""All the metadata that is stored: nothing of the machine that ran it."""


def read() -> nbformat.NotebookNode:
    """The notebook as it is stored."""
    return nbformat.read(TUTORIAL, as_version=4)


def executed() -> nbformat.NotebookNode:
    """The notebook after a run of all its cells in a kernel of its own; raises on the first cell that fails."""
    notebook = read()
    with tempfile.TemporaryDirectory() as folder:
        # Neither the settings of whoever runs this nor files of an earlier run take part.
        own = {"IPYTHONDIR": folder, "JUPYTER_CONFIG_DIR": folder, "JUPYTER_RUNTIME_DIR": folder}
        own["PYTHONWARNINGS"] = "ignore:IProgress not found"  # a progress bar that PyG could show
        with patch.dict(os.environ, own):
            NotebookClient(
                notebook, timeout=600, record_timing=False, resources={"metadata": {"path": folder}}
            ).execute()
    return notebook


def joined(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Outputs with the pieces of one stream put together: where they break depends on how fast a machine is."""
    kept: list[nbformat.NotebookNode] = []
    for output in outputs:
        if kept and output.output_type == kept[-1].output_type == "stream" and output.name == kept[-1].name:
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


def main() -> None:
    """Run and store."""
    notebook = executed()
    notebook.metadata = nbformat.from_dict(LANGUAGE)
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", nbformat.from_dict({})
        if cell.cell_type == "code":
            cell.outputs = joined(cell.outputs)
    nbformat.write(notebook, TUTORIAL)


if __name__ == "__main__":
    main()
