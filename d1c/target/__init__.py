"""The contract of compiler and runtime: machine, instructions, data types, binary. A leaf of the imports."""
