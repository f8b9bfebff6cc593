"""Groups that are easy to get wrong."""

from __future__ import annotations

import pytest

from d1c.ir.text import parse
from d1c.ir.verify import verify
from d1c.passes import fuse


@pytest.mark.parametrize("side", ["relu", "tanh"])
def test_a_contraction_and_its_epilogue_share_an_operand(side: str) -> None:
    """relu(x) w + f(relu(x)): what the contraction reads is stored, though nobody else reads it."""
    module = parse(f"""d1c.module graph {{outputs = ["y"]}} {{
      func @main(%x: tensor<6x6xf32>, %w: tensor<6x6xf32>) {{
        %t = graph.relu(%x) : tensor<6x6xf32>
        %p = graph.matmul(%t, %w) : tensor<6x6xf32>
        %f = graph.{side}(%t) : tensor<6x6xf32>
        %y = graph.add(%p, %f) : tensor<6x6xf32>
        graph.return(%y)
      }}
    }}""")
    made = fuse.run(module)
    verify(made)
    assert [op.name for op in made.function().block.ops] == ["graph.fused", "graph.fused", "graph.return"]
