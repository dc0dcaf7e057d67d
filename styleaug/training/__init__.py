"""Train generators. Nothing here is needed to use a trained one."""

from collections.abc import Callable
from types import ModuleType

from styleaug import importer

__getattr__: Callable[[str], ModuleType] = importer(__name__)
