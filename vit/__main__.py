"""`python -m vit` is the `vit` command."""

from vit.cli import main

main()
