"""The ops of every level: one row per op, found by d1c.ops.opdef.load_all."""
