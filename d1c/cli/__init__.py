"""The command line. Nothing heavy is imported before a command needs it: `d1c --help` costs typer and no more."""

import gc
import sys

__all__ = ["main"]


def main() -> None:
    """The entry point of `d1c`."""
    gc.set_threshold(100_000, 50, 50)  # what is imported and made lives to the end: cycles are rare
    try:
        from d1c.cli.commands import app  # here, since who waits for that may press Ctrl-C too

        app()
    except KeyboardInterrupt:  # before or after a command
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    finally:
        gc.freeze()  # the process ends: its memory goes at once, without a search for cycles in all that lives
