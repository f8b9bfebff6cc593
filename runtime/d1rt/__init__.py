"""Runs .d1x programs on an emulated wafer; importing this package loads nothing heavy, its modules do so on use."""
