"""Generators map `(images, codes, strength)` to stylised images of the same shape."""

from collections.abc import Callable
from types import ModuleType

from styleaug import importer

__getattr__: Callable[[str], ModuleType] = importer(__name__)
