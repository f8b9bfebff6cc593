"""Ops of the `dist` level."""
