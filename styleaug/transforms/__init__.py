"""Transforms draw parameters, then apply them; one file for each library that hosts them."""

from styleaug import importer

__getattr__ = importer(__name__)
