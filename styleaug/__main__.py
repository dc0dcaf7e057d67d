"""`python -m styleaug` is the `styleaug` command."""

from styleaug.cli import main

main()
