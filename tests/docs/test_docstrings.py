"""Every public name of bdbnet says what it is: modules, functions, classes, their methods and properties."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import FunctionType

import pytest

import bdbnet

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(bdbnet.__path__, "bdbnet.")
    if not any(part.startswith("_") for part in module.name.split("."))
)


def public_names(name: str) -> Iterator[tuple[str, object]]:
    """Public functions, classes and their members that a module defines."""
    module = importlib.import_module(name)
    yield name, module
    for key, found in vars(module).items():
        if key.startswith("_") or getattr(found, "__module__", None) != name:
            continue
        if isinstance(found, FunctionType):
            yield key, found
        elif isinstance(found, type):
            yield key, found
            for member, of in vars(found).items():
                called = isinstance(of, FunctionType | classmethod | staticmethod | property) or hasattr(of, "attrname")
                if called and not member.startswith("_"):
                    # A method of a library's class that is overridden is described there.
                    yield f"{key}.{member}", getattr(found, member) if isinstance(of, FunctionType) else of


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_has_a_docstring(name):
    missing = [key for key, found in public_names(name) if not inspect.getdoc(found)]
    assert not missing, f"{name}: {', '.join(missing)}"


def test_a_missing_docstring_is_found(monkeypatch):
    import bdbnet.files

    def undescribed() -> None:
        pass

    undescribed.__module__ = "bdbnet.files"
    monkeypatch.setattr(bdbnet.files, "undescribed", undescribed, raising=False)
    with pytest.raises(AssertionError, match="undescribed"):
        test_every_public_name_has_a_docstring("bdbnet.files")
