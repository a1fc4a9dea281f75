"""The notebook runs from top to bottom on a run's tables and draws its plots."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks" / "cohort.ipynb"


def test_the_notebook_runs_and_draws(first, monkeypatch):
    monkeypatch.setenv("TWINLIB_RUN", first.config.output)
    book = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(c.get("outputs") for c in book.cells), "commit the notebook without outputs"
    done = NotebookClient(book, timeout=300, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    images = [o for c in done.cells for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
    assert len(images) == 3
