"""`python -m gateway.cli`: the same as `puna`."""

from gateway.cli import main

main()
