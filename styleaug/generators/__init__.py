"""Generators map `(images, codes, strength)` to stylised images of the same shape."""

from styleaug import importer

__getattr__ = importer(__name__)
