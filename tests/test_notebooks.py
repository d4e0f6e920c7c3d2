"""Notebooks run from top to bottom with debug settings, and are stored without outputs."""

from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
FIGURES = ("curves.", "show(")  # how the last line of a cell that draws begins


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_is_stored_without_outputs_and_short(path):
    cells = nbformat.read(path, as_version=4).cells
    assert len(cells) < 20
    assert all(not cell.outputs and cell.execution_count is None for cell in cells if cell.cell_type == "code")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_runs_with_debug_settings_and_draws(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    (tmp_path / "configs").symlink_to(path.parents[1] / "configs")
    settings = next(c for c in notebook.cells if c.cell_type == "code" and "OPTIONS =" in c.source)
    settings.source += "\nOPTIONS = DEBUG\n"
    nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    drawing = [cell for cell in code if cell.source.splitlines()[-1].startswith(FIGURES)]
    assert len(drawing) >= 2
    for cell in drawing:
        images = [output for output in cell.outputs if "image/png" in output.get("data", {})]
        assert len(images) == 1, cell.source
    outputs = [output for cell in code for output in cell.outputs]
    assert not [o for o in outputs if o.get("name") == "stderr" and "Warning" in o["text"]]
