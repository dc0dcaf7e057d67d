"""Generators map `(images, codes, strength)` to stylised images of the same shape."""
