"""`puna`: what a person types. Everything but the standard library is imported late, so that `--help` is quick."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the `puna` command. Ends the process with one of the codes in `gateway.cli.exits`."""
    arguments = sys.argv[1:]
    if arguments[:1] in (["worker"], ["gateway"]):
        from gateway.cli.service import replace_by_service

        replace_by_service(arguments[0], arguments[1:])
    from gateway.cli.app import run

    sys.exit(run(arguments))
