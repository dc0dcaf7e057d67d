"""Style films and clips without flicker: `styleaug video` and `StyleVideo`."""

from styleaug import importer

__getattr__ = importer(__name__)
