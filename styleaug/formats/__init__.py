"""Codecs of medical and scientific files, each with its own optional library."""

from styleaug.parts import importer

__getattr__ = importer(__name__)
