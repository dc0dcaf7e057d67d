"""Read and write files: one table from suffix to codec, one way from a file to pixels."""

from styleaug import importer

__getattr__ = importer(__name__)
