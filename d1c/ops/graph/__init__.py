"""The ops of the graph level: one row, or one tight family of rows, per file."""
