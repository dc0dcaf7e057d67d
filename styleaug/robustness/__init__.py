"""`styleaug evaluate robustness`: classifiers trained with each arm, tested on other domains."""

from styleaug import importer

__getattr__ = importer(__name__)
