"""Rules of the house that import-linter cannot express."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "bdbnet"
TESTS = Path(__file__).resolve().parent
FILES = sorted(SOURCE.rglob("*.py"))


def imported_modules(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_only_one_file_talks_to_other_ranks(path):
    uses = {
        name for name in imported_modules(path) if name == "torch.distributed" or name.startswith("torch.distributed.")
    }
    assert not uses or path == SOURCE / "training" / "distributed.py"


def test_the_scan_finds_what_it_looks_for():
    assert "torch.distributed" in imported_modules(SOURCE / "training" / "distributed.py")


@pytest.mark.parametrize("path", [*FILES, *sorted(TESTS.rglob("*.py"))], ids=lambda path: path.stem)
def test_no_file_is_two_things(path):
    assert len(path.read_text().splitlines()) <= 400
