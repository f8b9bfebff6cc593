"""Ops of the kern level: loop nests and their vector bodies."""
