"""`python -m styleaug` is the `styleaug` command."""

from styleaug.cli.main import main

main()
