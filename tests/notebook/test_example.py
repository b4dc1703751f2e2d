"""The notebook of the examples, executed in a kernel of its own as a user would."""

import shutil
from pathlib import Path

import pytest

from tests.workflow import ROOT

nbclient = pytest.importorskip("nbclient", reason="nbclient and ipykernel are in the extra dev")
nbformat = pytest.importorskip("nbformat")

NOTEBOOK = ROOT / "examples" / "in_memory.ipynb"
BAR = """
from packedesm.progress import Progress, in_notebook
with Progress("counting", 3, "things") as progress:
    progress.add(3)
in_notebook()
"""


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook with new outputs, and a cell more."""
    folder = tmp_path_factory.mktemp("examples")
    shutil.copy(ROOT / "examples" / "uniprot_500.fasta.gz", folder)
    notebook = nbformat.read(NOTEBOOK, 4)
    notebook.cells.append(nbformat.v4.new_code_cell(BAR))
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    assert {path.name for path in folder.iterdir()} == {"uniprot_500.fasta.gz"}
    return notebook


def text(cell) -> str:
    """Return all that a cell has printed and returned, as text."""
    said = [out.get("text") or out.get("data", {}).get("text/plain", "") for out in cell.outputs]
    return "".join(said)


def code(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_every_cell_runs_and_the_head_learns(executed):
    said = "\n".join(map(text, code(executed)))
    assert "<Embeddings of 500 sequences: mean (500, 192) float32>" in said
    *_, correlation = said[said.index("correlation with 32") :].splitlines()[0].split()
    assert float(correlation) > 0.6


def test_the_map_is_drawn(executed):
    assert any("image/png" in out.get("data", {}) for c in code(executed) for out in c.outputs)


def test_a_bar_is_shown_in_jupyter(executed):
    last = code(executed)[-1]
    assert "counting: 100%" in text(last)
    assert text(last).endswith("True")


def test_what_is_stored_was_executed_and_is_small():
    stored = nbformat.read(NOTEBOOK, 4)
    nbformat.validate(stored)
    counts = [cell.execution_count for cell in code(stored)]
    assert counts == list(range(1, len(counts) + 1))
    assert not any(out.output_type == "error" for c in code(stored) for out in c.outputs)
    content = NOTEBOOK.read_text("utf-8")
    assert len(content) < 100_000
    assert str(Path.home()) not in content and str(ROOT) not in content
