"""Share banks and generators on the Hugging Face hub."""

from styleaug import importer

__getattr__ = importer(__name__)
