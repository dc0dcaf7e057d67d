"""Training generators and fitting banks; nothing here is needed to use them."""

from styleaug import importer

__getattr__ = importer(__name__)
