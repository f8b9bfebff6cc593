"""`d1c opt` and `d1c asm`: IR text in, IR text or a program out."""

from __future__ import annotations

import sys
from pathlib import Path

from d1c.cli.shell import check_outputs, read_npz
from d1c.errors import UsageError
from d1c.ir.text import parse


def read_text(path: Path) -> str:
    """The file's text (`-`: standard input). UsageError where it cannot be read."""
    try:
        return sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}", remedy="check the path") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text", rule="a .d1 file is text; d1c dis shows a .d1x") from None


def opt(path: Path, passes: str, target: str, precision: str) -> None:
    """Print what the passes make of a module."""
    from d1c.pipeline import run_pipeline
    from d1c.target.machine import machine

    module = parse(read_text(path), filename=str(path), origins=True)
    names = [name.strip() for name in passes.split(",") if name.strip()]
    done = run_pipeline(module, names, options={"policy": precision, "machine": machine(target)})
    print("\n".join(map(str, done.modules())))


def assemble_file(path: Path, output: Path, weights: Path | None) -> None:
    """Write the program that the text says: a tile module and the kern module of its kernels.

    weights  an .npz or a .d1x with the constants that the text names by digest only."""
    check_outputs(output, inputs=(path, weights))
    from d1c.emit.assemble import assemble
    from d1c.target import program_io

    given = None
    if weights is not None:
        given = dict(program_io.load(weights).weights) if weights.suffix == ".d1x" else read_npz(weights)
    program = assemble(read_text(path), str(path), weights=given)
    missing = sorted({p.array for p in program.placements} - set(program.weights))
    if missing:
        raise UsageError(
            f"the data of constant {missing[0]!r} is not in the text",
            where=str(path),
            rule="large constants are printed as a digest",
            remedy="give the data: --weights FILE.npz, or --weights PROGRAM.d1x",
        )
    program_io.save(program, output)
    print(f"{output}: {len(program.roles)} roles, {len(program.kernels)} kernels, {len(program.buffers)} buffers")
