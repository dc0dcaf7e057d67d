"""`styleaug apply` and `stylize`: folders, shards, Ray and slides."""

from styleaug import importer

__getattr__ = importer(__name__)
