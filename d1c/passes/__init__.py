"""Pure functions from module to module, one file per pass."""
