"""Code for processors that this host is not: kernels and the native loop for aarch64, the bf16 dot product.

Nothing of it runs here; docs/runtime.md says what has run.
"""

from __future__ import annotations

import random
import struct
from pathlib import Path

import llvmlite.binding as llvm
import pytest

from d1rt.engine_native import native_text
from d1rt.jit_joint import joint_text
from d1rt.jit_joint_shape import alone
from d1rt.jit_mac import blocking
from d1rt.jit_nest import build, computes_f64, nest_text
from d1rt.jit_state import ARCHITECTURE, state_text
from tests.runtime.test_jit_nests import matmul, random_mac, random_map, random_reduce

EM_AARCH64 = 183


@pytest.fixture(scope="module")
def machine() -> llvm.TargetMachine:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target = llvm.Target.from_triple("aarch64-unknown-linux-gnu")
    return target.create_target_machine(cpu="generic", opt=2, reloc="static", codemodel="large")


def made(text: str, machine: llvm.TargetMachine) -> None:
    """Make the object, as d1rt.jit_object makes it of a text."""
    assert "llvm.x86" not in text
    module = llvm.parse_assembly(text, context=llvm.create_context())
    module.verify()
    assert struct.unpack_from("<H", machine.emit_object(module), 18) == (EM_AARCH64,)


def test_kernels(machine: llvm.TargetMachine) -> None:
    rnd, blocks = random.Random(3), blocking(wide=False, dot=False)
    nests = [random_map(rnd)[0] for _ in range(40)] + [random_mac(rnd)[0] for _ in range(10)]
    nests += [random_reduce(rnd, kind)[0] for kind in ("sum", "prod", "max", "min", "or", "fma") for _ in range(3)]
    double = random_reduce(rnd, "sum", "f64")[0]
    assert computes_f64(double)  # it changes the state by itself
    for nest in (*nests, double):
        made(nest_text(nest, blocks, architecture="aarch64"), machine)


def test_products_of_many_cores(machine: llvm.TargetMachine) -> None:
    joint = alone(matmul(64, 64, 128, 32), wide=False, dot=False)
    assert joint is not None
    made(joint_text(joint), machine)


def test_the_native_loop(machine: llvm.TargetMachine) -> None:
    made(native_text("aarch64"), machine)
    made(state_text("aarch64"), machine)


@pytest.mark.skipif(ARCHITECTURE != "x86_64", reason="an instruction of x86-64")
def test_wide_blocks_and_the_dot_product(tmp_path: Path) -> None:
    rnd = random.Random(5)
    nests = {str(i): random_mac(rnd)[0] for i in range(3)}
    assert build(nests, cpu="znver5", use_dot=True, folder=tmp_path).misses
