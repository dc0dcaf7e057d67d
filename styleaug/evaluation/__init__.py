"""Measure quality, shift and label safety (`styleaug evaluate`)."""

from styleaug import importer

__getattr__ = importer(__name__)
