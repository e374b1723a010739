"""The notebooks run from their first cell to their last one, and are kept without outputs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def shown(outputs: Any, kind: str) -> str:
    """Return the outputs of a cell that are of a kind, as text."""
    return "".join(o.data[kind] for o in outputs if kind in o.get("data", {}))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_short_and_kept_without_outputs(path: Path) -> None:
    notebook = read(path)
    assert 5 < len(notebook.cells) < 12
    assert all(not c.outputs and c.execution_count is None for c in notebook.cells if c.cell_type == "code")


@pytest.mark.extra
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_tables_and_pictures(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("ipykernel", "matplotlib", "pandas", "plotly"):
        pytest.importorskip(package)
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = read(path)
    client = nbclient.NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    cells = {c.source: c.outputs for c in notebook.cells if c.cell_type == "code"}
    assert "<table" in shown(cells["result = program.detailed_results\nresult"], "text/html")
    pictures = [source for source in cells if "plot_" in source]
    assert pictures and all(shown(cells[source], "image/png") for source in pictures)
    said = "".join(o.text for outputs in cells.values() for o in outputs if o.output_type == "stream")
    assert "round 1 of about" in said
