"""The contract between compiler and runtime: machine, instructions, data types, binary. A leaf: imports nothing of d1c."""
