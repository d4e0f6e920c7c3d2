"""Notebooks run from top to bottom with debug settings, and are stored with the outputs of a whole run."""

from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
FIGURES = ("curves.", "show(")  # how the last line of a cell that draws begins


def drawing(code):
    return [cell for cell in code if cell.source.splitlines()[-1].startswith(FIGURES)]


def images(cell):
    return [output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_is_short_and_stored_with_the_outputs_of_one_run_from_top_to_bottom(path):
    cells = nbformat.read(path, as_version=4).cells
    assert len(cells) < 20
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    for cell in drawing(code):
        assert len(images(cell)) == 1, cell.source
        assert len(images(cell)[0]) < 200_000
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_runs_with_debug_settings_and_draws(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    (tmp_path / "configs").symlink_to(path.parents[1] / "configs")
    settings = next(c for c in notebook.cells if c.cell_type == "code" and "OPTIONS =" in c.source)
    settings.source += "\nOPTIONS = DEBUG\n"
    nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(drawing(code)) >= 2
    for cell in drawing(code):
        assert len(images(cell)) == 1, cell.source
    outputs = [output for cell in code for output in cell.outputs]
    assert not [o for o in outputs if o.get("name") == "stderr" and "Warning" in o["text"]]
