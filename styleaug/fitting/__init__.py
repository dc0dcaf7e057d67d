"""`styleaug fit-style`: banks of styles from images, with groups and privacy."""

from collections.abc import Callable
from types import ModuleType

from styleaug import importer

__getattr__: Callable[[str], ModuleType] = importer(__name__)
