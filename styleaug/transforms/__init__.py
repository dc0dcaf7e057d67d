"""Transforms draw parameters, then apply them; one file for each library that hosts them."""
