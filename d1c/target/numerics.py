"""What every instruction and kernel means, in numpy: the reference that all engines match bit for bit.

docs/numerics.md is the contract in words. This module is the one address; the parts are vector.py (instructions,
builders, storage), polynomials.py (elementary functions) and nest_numpy.py (sums and whole kernels).
"""

from d1c.target.nest_numpy import mac_pairs, run_nest, slices, sum_axes, tree
from d1c.target.polynomials import atan, cos, erf, exp, expm1, log, log1p, pow, sigmoid, sin, tanh
from d1c.target.vector import (
    Builder,
    NumpyBuilder,
    Recorded,
    Recorder,
    execute,
    fma_f32,
    fma_short,
    round_to,
    run_body,
    widen,
)

VERSION = 3
"""Numerics version, stored in every program: changed whenever any result's bits may change."""

__all__ = [
    "VERSION", "Builder", "NumpyBuilder", "Recorded", "Recorder", "atan", "cos", "erf", "execute", "exp", "expm1",
    "fma_f32", "fma_short", "log", "log1p", "mac_pairs", "pow", "round_to", "run_body", "run_nest", "sigmoid",
    "sin", "slices", "sum_axes", "tanh", "tree", "widen",
]  # fmt: skip
