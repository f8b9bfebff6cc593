"""The language of all four levels; it knows no op."""
