"""Runs notebooks from top to bottom and stores their outputs, without what changes from one run or machine to the next.

python notebooks/record.py                                     # all of them
python notebooks/record.py notebooks/1_quick_start.ipynb
"""

import base64
import io
import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

HERE = Path(__file__).resolve().parent
TIMEOUT = 600  # seconds for a cell
MOST_BYTES = 60_000  # of a PNG


def record(path: Path) -> None:
    """Execute a notebook in a kernel of this Python, in its own folder, and write it back with its outputs."""
    notebook = nbformat.read(path, as_version=4)
    place = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, kernel_name="python3", timeout=TIMEOUT, record_timing=False, resources=place).execute()
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = NotebookNode(kernelspec=kernel, language_info={"name": "python"})  # no versions
    for cell in notebook.cells:
        cell.metadata = NotebookNode()
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data = picture(output.data["image/png"])
    path.write_text(nbformat.writes(notebook, indent=1) + "\n", encoding="utf-8")


def picture(png: str) -> NotebookNode:
    """A picture by its type, in base64: plots stay PNG, those that hold photos become JPEG, four times smaller."""
    content = base64.b64decode(png)
    if len(content) <= MOST_BYTES:
        return NotebookNode({"image/png": png})
    buffer = io.BytesIO()
    Image.open(io.BytesIO(content)).convert("RGB").save(buffer, "JPEG", quality=90, optimize=True)
    return NotebookNode({"image/jpeg": base64.b64encode(buffer.getvalue()).decode()})


if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the same outputs with and without a GPU
    for name in map(Path, sys.argv[1:] or sorted(HERE.glob("*.ipynb"))):
        print(name.name, flush=True)
        record(name.resolve())
