"""Transforms draw parameters, then apply them; one file for each library that hosts them."""

from collections.abc import Callable
from types import ModuleType

from styleaug import importer

__getattr__: Callable[[str], ModuleType] = importer(__name__)
