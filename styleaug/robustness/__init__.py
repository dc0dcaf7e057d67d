"""Train a network with each arm and test it on other domains (`styleaug evaluate robustness`)."""

from styleaug import importer

__getattr__ = importer(__name__)
