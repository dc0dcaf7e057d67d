"""Measures of quality, shift, robustness and label safety; `styleaug evaluate` runs them."""
