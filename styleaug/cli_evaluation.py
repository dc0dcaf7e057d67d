"""The `styleaug evaluate` commands: parse, make one library call, print."""

import click

__all__ = ["evaluate"]


@click.group()
def evaluate() -> None:
    """Measure what styling reaches, keeps, costs and helps, on your own images."""
