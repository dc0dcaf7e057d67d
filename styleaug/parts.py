"""Modules of a package that are imported when they are first looked at, and not before."""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

__all__ = ["importer"]


def importer(package: str) -> Callable[[str], ModuleType]:
    """Return a `__getattr__` for a package, by which `package.part` needs no import of its own.

    Args:
        package: its `__name__`.
    """

    def find(name: str) -> ModuleType:
        if name.startswith("_") or not name.isidentifier() or find_spec(f"{package}.{name}") is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return import_module(f"{package}.{name}")

    return find
