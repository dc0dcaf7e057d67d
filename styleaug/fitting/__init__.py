"""`styleaug fit-style`: banks of styles from images, with studies held apart and privacy."""

from styleaug import importer

__getattr__ = importer(__name__)
