"""Style images on disk: `styleaug apply` and `styleaug stylize`, with folders, shards, Ray and slides."""

from styleaug import importer

__getattr__ = importer(__name__)
