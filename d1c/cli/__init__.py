"""The command line. Nothing heavy is imported before a command needs it: `d1c --help` costs typer and no more."""

import sys

__all__ = ["main"]


def main() -> None:
    """The entry point of `d1c`."""
    try:
        from d1c.cli.commands import app  # here, since who waits for that may press Ctrl-C too

        app()
    except KeyboardInterrupt:  # before or after a command
        print("interrupted", file=sys.stderr)
        sys.exit(130)
