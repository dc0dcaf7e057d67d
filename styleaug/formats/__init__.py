"""Codecs of medical and scientific files, each with its own optional library."""
