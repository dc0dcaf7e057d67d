"""Train a network with each arm and test it on other domains (`styleaug evaluate robustness`)."""

from collections.abc import Callable
from types import ModuleType

from styleaug import importer

__getattr__: Callable[[str], ModuleType] = importer(__name__)
