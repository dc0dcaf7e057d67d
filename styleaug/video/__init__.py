"""Style films and clips without flicker: `styleaug video` and `StyleVideo`."""

from collections.abc import Callable
from types import ModuleType

from styleaug import importer

__getattr__: Callable[[str], ModuleType] = importer(__name__)
