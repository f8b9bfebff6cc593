"""The command line. Nothing heavy is imported before a command needs it: `d1c --help` costs typer and no more."""

from d1c.cli.commands import app, main

__all__ = ["app", "main"]
