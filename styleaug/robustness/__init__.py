"""Train classifiers with each arm and test them on other domains (`styleaug evaluate robustness`)."""

from styleaug import importer

__getattr__ = importer(__name__)
