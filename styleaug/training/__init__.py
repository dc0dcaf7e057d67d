"""Train generators. Nothing here is needed to use a trained one."""

from styleaug import importer

__getattr__ = importer(__name__)
