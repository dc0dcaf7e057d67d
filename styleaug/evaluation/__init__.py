"""Measures of quality, shift, robustness and label safety; `styleaug evaluate` runs them."""

from styleaug.parts import importer

__getattr__ = importer(__name__)
