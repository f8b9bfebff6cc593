"""The other commands, the cost of --help, and what an interruption leaves behind."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import Result

from d1c.cli.dis import core_number
from d1c.cli.shell import write_file
from d1c.ir.text import parse
from d1c.target.machine import machine

Cli = Callable[..., Result]
ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'runtime'}"}

GRAPH = """d1c.module graph {
  func @main(%x: tensor<2x3xf32>) {
    %a = graph.transpose(%x) {perm = [1, 0]} : tensor<3x2xf32>
    %b = graph.transpose(%a) {perm = [1, 0]} : tensor<2x3xf32>
    %y = graph.relu(%b) : tensor<2x3xf32>
    graph.return(%y)
  }
}
"""


def cpu_seconds(*args: str) -> float:
    """CPU time of a child, user and system."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *args], env=ENVIRONMENT, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def test_help_answers_in_under_a_third_of_a_second_of_cpu_time() -> None:
    """The best of eight: a busy host makes some runs slower, and none faster."""
    cpu_seconds("-m", "d1c", "--help")  # writes the byte code
    assert min(cpu_seconds("-m", "d1c", "--help") for _ in range(8)) < 0.3


def test_help_lists_all_commands(cli: Cli) -> None:
    done = cli("--help")
    assert done.exit_code == 0
    for command in ("compile", "check-model", "run", "dis", "opt", "asm", "targets", "ops"):
        assert f"  {command} " in done.stdout
        assert cli(command, "--help").exit_code == 0


def test_version(cli: Cli) -> None:
    import d1c

    assert cli("--version").stdout.strip() == f"d1c {d1c.__version__}"


def test_targets(cli: Cli) -> None:
    listed = cli("targets").stdout
    for name in ("d1-node", "d1-die", "d1-tile", "test"):
        assert name in listed
    assert "8,800 cores of 8,850 live nodes" in listed
    one = cli("targets", "d1-tile").stdout
    assert "sram_bytes = 1,310,720 B" in one and "assumed" in one and "Hot Chips" in one
    own = cli("targets", "test").stdout.split("sram_bytes = ")[1].splitlines()
    assert own[0] == "65,536 B" and "test has its own" in own[1] and "Hot Chips" not in own[1]
    assert cli("targets", "d3").exit_code == 2


def test_ops(cli: Cli) -> None:
    listed = cli("ops").stdout
    for word in ("Conv", "MatMul", "as functions", "level graph", "level dist", "level tile", "level kern", "Gather"):
        assert word in listed


def test_opt_runs_passes_in_the_order_given(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "g.d1").write_text(GRAPH)
    done = cli("opt", tmp_path / "g.d1", "-p", "simplify-views,fuse")
    assert done.exit_code == 0, done.stderr
    module = parse(done.stdout)
    assert "graph.transpose" not in done.stdout and module.level == "graph"


def test_opt_distributes(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "g.d1").write_text(GRAPH)
    done = cli("opt", tmp_path / "g.d1", "-p", "simplify-views,fuse,distribute", "--target", "test")
    assert done.exit_code == 0, done.stderr
    assert parse(done.stdout).level == "dist"


def test_opt_lowers_to_a_program_that_asm_takes(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "g.d1").write_text(GRAPH)
    done = cli("opt", tmp_path / "g.d1", "-p", "fuse,distribute,lower-tile", "--target", "test")
    assert done.exit_code == 0 and "d1c.module tile" in done.stdout and "d1c.module kern" in done.stdout
    (tmp_path / "p.d1").write_text(done.stdout)
    assert cli("asm", tmp_path / "p.d1", "-o", tmp_path / "p.d1x").exit_code == 0


def test_opt_does_not_lower_constants_that_are_only_named(cli: Cli, model: Path, tmp_path: Path) -> None:
    flags = ("--target", "test", "--precision", "f32")
    (tmp_path / "d.d1").write_text(cli("compile", model, *flags, "--emit", "dist").stdout)
    done = cli("opt", tmp_path / "d.d1", "-p", "lower-tile", "--target", "test")
    assert done.exit_code == 2 and "constant" in done.stderr and "remedy" in done.stderr, done.stdout + done.stderr


def test_stopping_after_the_last_pass_prints_what_asm_takes(
    cli: Cli, model: Path, program: Path, tmp_path: Path
) -> None:
    stopped = cli("compile", model, "--target", "test", "--precision", "f32", "--stop-after", "lower-tile")
    assert stopped.exit_code == 0, stopped.stderr
    (tmp_path / "p.d1").write_text(stopped.stdout)
    done = cli("asm", tmp_path / "p.d1", "-o", tmp_path / "p.d1x", "--weights", program)
    assert done.exit_code == 0, done.stderr


def test_opt_refuses_what_it_cannot_do(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "g.d1").write_text(GRAPH)
    done = cli("opt", tmp_path / "g.d1", "-p", "vectorise")
    assert done.exit_code == 2 and "vectorise" in done.stderr and "fuse" in done.stderr
    (tmp_path / "bad.d1").write_text(GRAPH.replace("graph.relu(%b)", "graph.relu(%b"))
    done = cli("opt", tmp_path / "bad.d1", "-p", "fuse")
    assert done.exit_code == 7 and "bad.d1:5:" in done.stderr and "^" in done.stderr
    (tmp_path / "wrong.d1").write_text(
        GRAPH.replace("%y = graph.relu(%b) : tensor<2x3xf32>", "%y = graph.relu(%b) : tensor<3x3xf32>")
    )
    done = cli("opt", tmp_path / "wrong.d1", "-p", "fuse")
    assert done.exit_code == 8 and "wrong.d1:5" in done.stderr


def test_core_numbers_run_over_the_whole_machine() -> None:
    tile = machine("d1-tile")
    assert core_number("0,0", tile) == 0
    assert core_number("21,0", tile) == 21
    assert core_number("22,0", tile) == 352, "the first core of the second die"
    assert core_number("0,16", tile) == 5 * 352, "the first core of the second row of dies"
    assert core_number("109,79", tile) == 8799


def test_dis_prints_the_program_and_one_core(cli: Cli, program: Path) -> None:
    whole = cli("dis", program)
    assert whole.exit_code == 0, whole.stderr
    assert "d1c.module tile" in whole.stdout and "d1c.module kern" in whole.stdout and "kern.nest" in whole.stdout
    core = cli("dis", program, "--core", "3,1")
    assert core.exit_code == 0, core.stderr
    assert core.stdout.startswith("core ") and "thread 0" in core.stdout and "call " in core.stdout
    assert cli("dis", program, "--role", "main").exit_code == 0
    for flags in (["--core", "8,0"], ["--core", "x"], ["--role", "nobody"]):
        refused = cli("dis", program, *flags)
        assert refused.exit_code == 2 and refused.stdout == "", flags


def test_asm_of_printed_modules_gives_the_program_back(cli: Cli, model: Path, program: Path, tmp_path: Path) -> None:
    flags = ("--target", "test", "--precision", "f32")
    text = "\n".join(cli("compile", model, *flags, "--emit", level).stdout for level in ("tile", "kern"))
    (tmp_path / "p.d1").write_text(text)
    alone = cli("asm", tmp_path / "p.d1", "-o", tmp_path / "p.d1x")
    assert alone.exit_code != 0 and not (tmp_path / "p.d1x").exists(), "the weights are not in the text"
    done = cli("asm", tmp_path / "p.d1", "-o", tmp_path / "p.d1x", "--weights", program)
    assert done.exit_code == 0, done.stderr
    again, first = (cli("dis", path).stdout for path in (tmp_path / "p.d1x", program))
    strip = [line for line in first.splitlines() if "loc(" not in line]
    assert [line for line in again.splitlines() if "loc(" not in line] == strip


def test_a_hand_written_program_is_assembled_and_run(
    cli: Cli, examples: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    done = cli("asm", examples / "handwritten/double_buffer.d1", "-o", tmp_path / "p.d1x")
    assert done.exit_code == 0, done.stderr
    x = rng.standard_normal((8, 64)).astype(np.float32)
    np.savez(tmp_path / "in.npz", x=x)
    done = cli(
        "run",
        tmp_path / "p.d1x",
        "--inputs",
        tmp_path / "in.npz",
        "--outputs",
        tmp_path / "out.npz",
        "--engine",
        "numpy",
    )
    assert done.exit_code == 0, done.stderr
    scale = np.array([2.0, -0.5] * 4)[:, None, None]
    np.testing.assert_allclose(
        np.load(tmp_path / "out.npz")["sum"], (scale * x.reshape(8, 4, 16) + 1).sum(1), atol=1e-5
    )


def test_asm_points_at_the_line(cli: Cli, examples: Path, tmp_path: Path) -> None:
    text = (examples / "handwritten/double_buffer.d1").read_text()
    (tmp_path / "p.d1").write_text(text.replace("tile.free(%y.a) ", "tile.free(%y.a "))
    done = cli("asm", tmp_path / "p.d1", "-o", tmp_path / "p.d1x")
    assert done.exit_code == 7 and "p.d1:" in done.stderr and "^" in done.stderr
    assert not (tmp_path / "p.d1x").exists()


# ---- interruption ---------------------------------------------------------------------------------------------------


def test_a_file_is_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "out.npz"

    def interrupted(file: object) -> None:
        np.savez(file, x=np.zeros(1000))  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_file(path, interrupted)
    assert list(tmp_path.iterdir()) == []
    write_file(path, lambda file: file.write(b"whole"))
    assert path.read_bytes() == b"whole"
    with pytest.raises(KeyboardInterrupt):
        write_file(path, interrupted)
    assert path.read_bytes() == b"whole", "what was there before stays"


@pytest.mark.parametrize("after", [0.3, 0.8, 1.3])
def test_ctrl_c_leaves_no_partial_file(tmp_path: Path, model: Path, after: float) -> None:
    out = tmp_path / "out"
    out.mkdir()
    script = (
        "import signal, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        "print('started', flush=True)\n"
        "import d1c.api\n"
        "real = d1c.api.compile\n"
        "def slow(*args, **kwargs):\n"
        "    program = real(*args, **kwargs)\n"
        "    print('compiled', flush=True)\n"
        "    time.sleep(30)\n"
        "    return program\n"
        "d1c.api.compile = slow\n"
        "from d1c.cli import main\n"
        "main()\n"
    )
    command = [
        sys.executable,
        "-c",
        script,
        "compile",
        str(model),
        "-o",
        str(out / "p.d1x"),
        "--target",
        "test",
        "--json",
        str(out / "s.json"),
    ]
    child = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "started\n"
    if after > 1:
        assert child.stdout.readline() == "compiled\n"
    else:
        time.sleep(after)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=30)
    assert list(out.iterdir()) == []
    if after > 1:
        assert child.returncode == 130 and "interrupted" in errors and "Traceback" not in errors


def test_ctrl_c_while_the_command_line_is_imported() -> None:
    script = (
        "import builtins\n"
        "real = builtins.__import__\n"
        "def pressed(name, *args, **kwargs):\n"
        "    if name == 'typer':\n"
        "        raise KeyboardInterrupt\n"
        "    return real(name, *args, **kwargs)\n"
        "builtins.__import__ = pressed\n"
        "from d1c.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_ops_tells_all_about_an_op(cli: Cli) -> None:
    done = cli("ops", "TopK", "Attention", "SequenceAt")
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[0].startswith("TopK: from opset 1, on the cores; ") and "integers" in lines[0]
    assert "must be known at compile time: K" in done.stdout
    assert "Attention: on the cores, as the nodes of ONNX's own definition; floats" in done.stdout
    assert "SequenceAt: from opset 11, resolved at import" in done.stdout


def test_ops_knows_the_ops_that_it_tells_about(cli: Cli) -> None:
    done = cli("ops", "Foo")
    assert done.exit_code == 2 and "no ONNX op 'Foo' can be compiled" in done.stderr
