"""`styleaug evaluate`: quality, shift and labels."""

from styleaug import importer

__getattr__ = importer(__name__)
