"""The order of dies that a graph gets, and what it does to distances."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from d1c.analysis.die_order import with_order
from d1c.analysis.layers import layers_of
from d1c.ir.text import parse
from d1c.target.embedding import global_position
from d1c.target.machine import machine


def _conv(images: int, taps: int) -> str:
    p = taps // 2
    return f"""d1c.module graph {{outputs = ["y"]}} {{
  func @main(%x: tensor<{images}x28x28x8xf32>, %w: tensor<{taps}x{taps}x8x16x1xf32>) {{
    %y = graph.conv(%x, %w) {{strides = [1, 1], pads = [{p}, {p}, {p}, {p}], dilations = [1, 1], packed = true}}
      : tensor<{images}x28x28x16xf32>
    graph.return(%y)
  }}
}}
"""


@pytest.mark.parametrize(("images", "taps", "order"), [(1, 3, "any"), (4, 3, "snake"), (4, 1, "any"), (64, 3, "any")])
def test_halos_of_some_images_want_a_snake(images: int, taps: int, order: str) -> None:
    layers = layers_of(parse(_conv(images, taps))).layers
    assert with_order(machine("d1-tile"), layers).die_order == order
    fixed = replace(machine("d1-tile"), die_order="rows")
    assert with_order(fixed, layers) is fixed


def test_dies_of_a_snake_follow_each_other() -> None:
    rows, snake = (replace(machine("d1-tile"), die_order=x) for x in ("rows", "snake"))
    sites = global_position(snake)
    where = sites[..., 0, 0, :] // (snake.site_rows, snake.site_cols)
    assert (np.abs(np.diff(where.reshape(-1, 2), axis=0)).sum(1) == 1).all()
    assert {tuple(p) for p in sites.reshape(-1, 2)} == {tuple(p) for p in global_position(rows).reshape(-1, 2)}
