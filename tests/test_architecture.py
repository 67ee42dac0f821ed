"""Rules for the source tree that import-linter can't express."""

import ast
from collections.abc import Container
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "bdbnet"
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
def test_three_files_talk_to_other_ranks(path):
    uses = {
        name for name in imported_modules(path) if name == "torch.distributed" or name.startswith("torch.distributed.")
    }
    # What ranks say while they train, how they meet before, and whether they are still there.
    assert not uses or path in [SOURCE / "training" / name for name in ("distributed.py", "joining.py", "watching.py")]


def test_the_scan_finds_what_it_looks_for():
    assert "torch.distributed" in imported_modules(SOURCE / "training" / "distributed.py")


def module_name(path: Path, source: Path) -> str:
    parts = path.relative_to(source.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_when_loaded(tree: ast.Module, modules: Container[str]) -> set[str]:
    """Those of `modules` that a file imports while it is loaded: not in functions, not for the type checker alone.

    `from package import name` imports the module `package.name` if there is one, else the package's `__init__`.
    """
    found, waiting = set(), list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in modules else str(node.module) for name in names}
        else:
            waiting += ast.iter_child_nodes(node)
    return {name for name in found if name in modules}


def import_graph(source: Path) -> dict[str, set[str]]:
    """Each module below `source` -> the others that it imports while it is loaded."""
    trees = {module_name(path, source): ast.parse(path.read_text()) for path in source.rglob("*.py")}
    return {module: imported_when_loaded(tree, trees) - {module} for module, tree in trees.items()}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of two or more modules that reach one another."""

    def reached(start: str) -> set[str]:
        seen, waiting = set(), [start]
        while waiting:
            for other in graph[waiting.pop()] - seen:
                seen.add(other)
                waiting.append(other)
        return seen

    reach = {module: reached(module) for module in graph}
    groups = {
        tuple(sorted(other for other in reach[module] if module in reach[other]))
        for module in graph
        if module in reach[module]
    }
    return [list(group) for group in sorted(groups)]


def test_no_two_files_import_each_other():
    assert circles(import_graph(SOURCE)) == []


def test_a_planted_circle_is_found(tmp_path):
    house = tmp_path / "house"
    (house / "room").mkdir(parents=True)
    for name, text in {
        "__init__.py": "",
        "one.py": "from house.two import b\na = 1\n",
        "two.py": "try:\n    from house import three\nexcept ImportError:\n    pass\nb = 1\n",
        "three.py": "class Three:\n    import house.one\n",
        "late.py": "from house.later import d\n",
        "later.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import house.late\ndef d():\n    import house.late\n",
        "room/__init__.py": "from house.room.door import e\n",
        "room/door.py": "from house.room import window\ne = 1\n",
        "room/window.py": "from house.room import e\n",
    }.items():
        (house / name).write_text(text)
    graph = import_graph(house)
    assert graph["house.two"] == {"house.three"}
    assert graph["house.later"] == set()
    assert circles(graph) == [
        ["house.one", "house.three", "house.two"],
        ["house.room", "house.room.door", "house.room.window"],
    ]
