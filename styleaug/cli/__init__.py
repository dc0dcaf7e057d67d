"""The `styleaug` command: parse, make one library call, print."""

from styleaug import importer

__getattr__ = importer(__name__)
