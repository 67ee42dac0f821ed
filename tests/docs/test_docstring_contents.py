"""What a docstring has to say beyond being there: shapes of tensors and arrays, and the errors of bdbnet that are raised."""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "bdbnet"
MODULES = sorted(SOURCE.rglob("*.py"))
ERRORS = {
    node.name
    for module in MODULES
    for node in ast.walk(ast.parse(module.read_text()))
    if isinstance(node, ast.ClassDef) and node.name.endswith("Error")
}
#: A tuple of sizes such as (N, 3, H, W), (N,), (..., D) or (height, width, 3); H x W; a scalar; any shape.
SHAPE = re.compile(
    r"\((?:\.\.\.|\d+|[A-Z]\d?|[hknw]|height|rows|queries|bins|count)(?: [-+*/] \w+)*,[^()]*\)"
    r"|\b[A-Z] x [A-Z]\b|\bscalars?\b|\b(?:any|same) shape\b"
)
ARRAYS = {"Tensor", "torch.Tensor", "np.ndarray", "NDArray"}
#: Of these an annotation's arguments say nothing of the shape that the function itself takes or returns.
INDIRECT = {"Mapping", "MutableMapping", "dict", "Callable"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Documented(NamedTuple):
    """A public function, method or class, and the docstring that describes it."""

    name: str
    node: Function | ast.ClassDef
    text: str


def public(body: list[ast.stmt], owner: ast.ClassDef | None = None) -> Iterator[Documented]:
    """The public names of a module or class. A method may be described by its class, a class says what its fields are."""
    described = "" if owner is None else ast.get_docstring(owner) or ""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            said = (each.value for each in node.body if isinstance(each, ast.Expr))  # also below single fields
            texts = (str(each.value) for each in said if isinstance(each, ast.Constant))
            yield Documented(node.name, node, "\n".join(texts))
            yield from public(node.body, node)
        elif isinstance(node, Function) and (not node.name.startswith("_") or node.name in ("__init__", "__call__")):
            name = node.name if owner is None else f"{owner.name}.{node.name}"
            yield Documented(name, node, f"{ast.get_docstring(node) or ''}\n{described}")


def holds_arrays(annotation: ast.expr | None) -> bool:
    """Whether an annotation is of a tensor or array, or of a collection of them."""
    if isinstance(annotation, ast.Name | ast.Attribute):
        return ast.unparse(annotation) in ARRAYS
    if isinstance(annotation, ast.Subscript):
        name = ast.unparse(annotation.value)
        return name in ARRAYS or (name not in INDIRECT and holds_arrays(annotation.slice))
    children = ast.iter_child_nodes(annotation) if annotation is not None else ()
    return any(holds_arrays(child) for child in children if isinstance(child, ast.expr))


def annotations(node: Function | ast.ClassDef) -> Iterator[ast.expr | None]:
    """Those of a function's arguments and its result, or of a class's public fields."""
    if isinstance(node, ast.ClassDef):
        fields = (each for each in node.body if isinstance(each, ast.AnnAssign))
        yield from (field.annotation for field in fields if not ast.unparse(field.target).startswith("_"))
    else:
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg]
        yield from (argument.annotation for argument in arguments if argument is not None)
        yield node.returns


def raised(node: ast.AST) -> Iterator[str]:
    """The errors of bdbnet that leave the body of a function: neither those of functions inside it nor those it catches by name."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function | ast.Lambda | ast.ClassDef):
            continue
        if isinstance(child, ast.Raise) and isinstance(child.exc, ast.Call):
            name = ast.unparse(child.exc.func).rpartition(".")[2]
            if name in ERRORS and not name.startswith("_"):
                yield name
        if isinstance(child, ast.Try):
            caught = {each.id for handler in child.handlers for each in names_in(handler.type)}
            inside = ast.Module(child.body, [])
            yield from (name for name in raised(inside) if name not in caught)
            yield from raised(ast.Module([*child.handlers, *child.orelse, *child.finalbody], []))
        else:
            yield from raised(child)


def names_in(node: ast.expr | None) -> Iterator[ast.Name]:
    """The names in an expression."""
    return (each for each in ast.walk(node) if isinstance(each, ast.Name)) if node is not None else iter(())


def without_shape(source: str) -> list[str]:
    """Public names of a module that have to do with tensors or arrays and name no shape."""
    return [
        f"{each.name} (line {each.node.lineno})"
        for each in public(ast.parse(source).body)
        if any(map(holds_arrays, annotations(each.node))) and not SHAPE.search(each.text)
    ]


def without_errors(source: str) -> list[str]:
    """Public functions of a module but `main`, with the errors of bdbnet that they raise and do not name after "Raises"."""
    found = []
    for each in public(ast.parse(source).body):
        if isinstance(each.node, Function) and each.name != "main":  # a command prints them
            said = " ".join(re.findall(r"\bRaises?\b.*", each.text, re.DOTALL))
            found += [
                f"{each.name} (line {each.node.lineno}): {name}" for name in {*raised(each.node)} if name not in said
            ]
    return found


each_module = pytest.mark.parametrize("module", MODULES, ids=lambda module: module.relative_to(SOURCE).as_posix())


@each_module
def test_a_function_of_tensors_says_their_shapes(module):
    missing = without_shape(module.read_text())
    assert not missing, f"{module.name}: name a shape, such as (N, D): {', '.join(missing)}"


@each_module
def test_a_function_says_which_of_our_errors_it_raises(module):
    missing = without_errors(module.read_text())
    assert not missing, f"{module.name}: say so after Raises: {', '.join(missing)}"


@pytest.mark.parametrize(
    ("signature", "text", "found"),
    [
        ("def f(x: Tensor) -> int", "Of x.", True),
        ("def f(x: Tensor) -> int", "Of x (N, D).", False),
        ("def f(x: int) -> Iterator[tuple[int, np.ndarray]]", "Rows (see Zhou, 2019).", True),
        ("def f(x: int) -> Iterator[tuple[int, np.ndarray]]", "Rows (..., D).", False),
        ("def f(x: Tensor | None = None) -> None", "A scalar.", False),
        ("def f(x: Mapping[str, Tensor]) -> None", "A state.", False),
        ("def _f(x: Tensor) -> None", "Ours.", False),
    ],
)
def test_a_missing_shape_is_found(signature, text, found):
    assert bool(without_shape(f'{signature}:\n    """{text}"""\n')) is found


def test_a_missing_error_is_found():
    source = inspect.cleandoc(
        '''
        def f(x):
            """Reads x.{}"""
            if x:
                raise files.CheckpointError("x")
            try:
                raise DatasetError("caught")
            except (OSError, DatasetError):
                raise ValueError("x")

        class C:
            """Holds x.{}"""

            def __init__(self):
                def inner():
                    raise DatasetError("no matter")
                raise CheckpointError("x")
        '''
    )
    assert without_errors(source.format("", "")) == [
        "f (line 1): CheckpointError",
        "C.__init__ (line 13): CheckpointError",
    ]
    assert without_errors(source.format("  Raises CheckpointError.", "\n\nRaises:\n  CheckpointError: no x.")) == []
