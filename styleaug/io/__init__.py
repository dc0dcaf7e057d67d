"""Read and write files: one table from suffix to codec, one way from a file to pixels."""

from collections.abc import Callable
from types import ModuleType

from styleaug import importer

__getattr__: Callable[[str], ModuleType] = importer(__name__)
