"""`styleaug video`: films and clips whose style does not flicker."""

from styleaug import importer

__getattr__ = importer(__name__)
