"""Style images on disk: `styleaug apply` and `styleaug stylize`, with folders, shards, Ray and slides."""

from collections.abc import Callable
from types import ModuleType

from styleaug import importer

__getattr__: Callable[[str], ModuleType] = importer(__name__)
