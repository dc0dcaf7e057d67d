"""Run the `styleaug` command with `python -m styleaug`."""

from styleaug.cli.main import main

main()
