"""`styleaug fit-style`: banks of styles from images, with groups and privacy."""

from styleaug import importer

__getattr__ = importer(__name__)
