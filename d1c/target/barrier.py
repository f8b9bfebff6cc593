"""The tree of a Barrier: who posts to whom. Its root is in the middle of every axis, so that nobody is far from it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from d1c.target.mesh import Mesh


def barrier_axes(mesh: Mesh) -> tuple[tuple[str, ...], ...]:
    """The mesh's axes, first first: each the factors that share a name before the dot."""
    axes: dict[str, tuple[str, ...]] = {}
    for name in mesh.names:
        base = name.partition(".")[0]
        axes[base] = (*axes.get(base, ()), name)
    return tuple(axes.values())


def middle(mesh: Mesh, factors: tuple[str, ...]) -> int:
    """The position along an axis to which its cores post."""
    return mesh.parts(factors) // 2


def levels(mesh: Mesh) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """From the last axis to the first: the axis's number, the cores that are still up (ascending), and whom each posts
    to. Those that post to themselves stay up; at the end that is the root."""
    up = np.arange(mesh.cores)
    axes = barrier_axes(mesh)
    for i in reversed(range(len(axes))):
        at = mesh.position(axes[i], up)
        to = up - mesh.core_offset(axes[i], at) + mesh.core_offset(axes[i], np.full_like(at, middle(mesh, axes[i])))
        yield i, up, to
        up = up[up == to]


def root(mesh: Mesh) -> int:
    """The core that releases all others."""
    return int(sum(mesh.core_offset(a, np.array([middle(mesh, a)]))[0] for a in barrier_axes(mesh)))
