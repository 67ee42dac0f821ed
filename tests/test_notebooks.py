"""The notebooks run, what is stored of them is what they print, and they say what is missing."""

import ast
import contextlib
import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from filelock import FileLock
from nbformat import NotebookNode

from bdbnet.datasets import DatasetError, load_manifest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
PEOPLE = {"train_identities": 240, "test_only": True}  # the test set that they share

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path, kind: str = "code") -> list[NotebookNode]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def python(cell: NotebookNode) -> str:
    """A cell's code without magics."""
    return re.sub(r"^%.*$", "", cell.source, flags=re.MULTILINE)


def printed(cell: NotebookNode) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def text_of(cell: NotebookNode) -> str:
    """All text in a cell's outputs."""
    shown = [value for output in cell.outputs for kind, value in output.get("data", {}).items() if "image" not in kind]
    return printed(cell) + "\n".join(shown)


def without_numbers(text: str) -> str:
    """Numbers differ a little between machines."""
    return re.sub(r"\d+(\.\d+)?", "#", text)


def run(cell: NotebookNode, namespace: dict[str, Any]) -> str:
    """Run a cell, show its last expression as a notebook does, and return what it printed."""
    tree = ast.parse(python(cell))
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(tree, "cell", "exec"), namespace)
        if last is not None:
            shown = eval(compile(ast.Expression(last.value), "cell", "eval"), namespace)
            if hasattr(shown, "savefig"):
                shown.savefig(io.BytesIO())
    return out.getvalue()


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of the notebooks, rendered once for all processes of the tests."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "notebooks"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "lock"):
        load_manifest("synthetic_reid", folder / "synthetic_reid", **PEOPLE)
    return folder


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What a new kernel in the folder of the notebooks knows; its temporary files go to `tmp_path`."""
    import matplotlib.pyplot as plt

    plt.switch_backend("agg")
    monkeypatch.chdir(FOLDER)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("BDBNET_DATA", str(tmp_path / "data"))
    yield {"__name__": "__main__"}
    plt.close("all")


@pytest.mark.notebooks
@each
def test_it_runs_and_prints_what_is_stored(path, kernel, data, monkeypatch):
    monkeypatch.setenv("BDBNET_DATA", str(data))
    for cell in cells(path):
        assert without_numbers(run(cell, kernel)) == without_numbers(printed(cell)), cell.source


@each
def test_its_outputs_are_those_of_one_run_from_top_to_bottom(path):
    code = cells(path)
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert sum(bool(cell.outputs) for cell in code) >= len(code) / 2
    assert any("image" in kind for cell in code for output in cell.outputs for kind in output.get("data", {}))
    assert path.stat().st_size < 500_000


@each
def test_its_outputs_hold_nothing_of_one_machine(path):
    for cell in cells(path):
        kinds = [output.get("name", output.output_type) for output in cell.outputs]
        assert not {"stderr", "error"} & set(kinds), text_of(cell)
        text = text_of(cell)
        assert not re.search(r"(?<![\w.<])/(?:tmp|home|root|work|usr|opt|var|Users|data)\b|\b[A-Z]:\\", text), text
        assert not re.search(r"\d (?:s|ms|seconds|minutes|images/s)\b|\b20\d\d-\d\d-\d\d|Warning", text), text
        assert not cell.metadata


@each
def test_its_cells_are_short(path):
    for cell in cells(path):
        lines = cell.source.splitlines()
        assert len(lines) <= 26, cell.source
        assert max(map(len, lines)) <= 120
    for cell in cells(path, "markdown"):
        assert len(cell.source.splitlines()) <= 12, cell.source


@each
def test_it_uses_public_names_alone(path):
    for cell in cells(path):
        for node in ast.walk(ast.parse(python(cell))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            names += [node.attr] if isinstance(node, ast.Attribute) else []
            assert not [name for name in names if name.rpartition(".")[2].startswith("_")], cell.source


@each
def test_its_links_lead_somewhere(path):
    text = "\n".join(cell.source for cell in cells(path, "markdown"))
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert target.startswith("https://") or (FOLDER / target).is_file(), target


@each
def test_it_says_what_it_needs_and_that_a_kernel_has_no_bdbnet(path, kernel, monkeypatch):
    assert "**Needs** bdbnet" in cells(path, "markdown")[0].source
    monkeypatch.setitem(sys.modules, "bdbnet", None)
    with pytest.raises(ImportError, match=r"this kernel has no bdbnet: .*\.venv.*%pip install"):
        run(cells(path)[0], kernel)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_data_that_cannot_be_rendered_are_named(number, kernel, tmp_path, monkeypatch):
    monkeypatch.setenv("BDBNET_DATA", str(tmp_path / "file"))
    (tmp_path / "file").write_text("no folder")
    code = cells(NOTEBOOKS[number - 1])
    loads = next(cell for cell in code if "load_manifest(" in cell.source)
    run(code[0], kernel)
    with pytest.raises(DatasetError, match=f"can't render synthetic_reid into {tmp_path}/file"):
        run(loads, kernel)


def test_a_sweep_that_is_not_there_is_named(kernel, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"height_ratio: no such folder: .*notebooks/.*RUNS"):
        run(cells(NOTEBOOKS[4])[0], kernel)


def test_a_page_lists_them():
    listed = re.findall(r"\]\(\.\./notebooks/(\w+\.ipynb)\)", (ROOT / "docs" / "notebooks.md").read_text())
    assert listed == [path.name for path in NOTEBOOKS]
    assert len(NOTEBOOKS) == 6
