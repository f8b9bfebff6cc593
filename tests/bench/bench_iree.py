"""How long d1c and IREE take to compile the same network on the same host.

    python tests/bench/bench_iree.py [MODEL.onnx] [--iree FOLDER] [--rounds 3]

d1c compiles for `d1-tile`, IREE for this processor (llvm-cpu; its import of ONNX included). Whole processes, in turns:
seconds on the clock and of processors, the least of the rounds. Without a model the builder of tests/networks.py writes
resnet50. `--iree`: the folder of `iree-import-onnx` and `iree-compile` (`pip install 'iree-base-compiler[onnx]'`), if
they are not on the path; where they are missing, the script says so and does nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def seconds(*commands: list[str]) -> tuple[float, float]:
    """On the clock, and of processors."""
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'runtime'}"}
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its byte code
    for c in commands:
        done = subprocess.run(c, env=env, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(c)}\n{done.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - started, sum(after[:2]) - sum(before[:2])


def main() -> None:
    parser = argparse.ArgumentParser(description="Compile time of d1c and of IREE.")
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--iree", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    o = parser.parse_args()
    tools = [
        shutil.which(n, path=None if o.iree is None else str(o.iree)) for n in ("iree-import-onnx", "iree-compile")
    ]
    importer, compiler = tools
    if importer is None or compiler is None:
        print("skipped: no iree-import-onnx and iree-compile on the path (pip install 'iree-base-compiler[onnx]')")
        return
    with tempfile.TemporaryDirectory() as folder:
        model, mlir = o.model, f"{folder}/model.mlir"
        if model is None:
            import onnx

            sys.path[:0] = [str(ROOT), str(ROOT / "runtime")]
            from tests import networks

            model = Path(folder) / "resnet50.onnx"
            onnx.save(networks.resnet50(), str(model))
        sides = {
            "d1c": [[sys.executable, "-m", "d1c", "compile", str(model), "-o", f"{folder}/model.d1x"]],
            "IREE": [
                [importer, str(model), "-o", mlir],
                [compiler, "--iree-hal-target-backends=llvm-cpu", "--iree-llvmcpu-target-cpu=host", mlir,
                 "-o", f"{folder}/model.vmfb"],
            ],
        }  # fmt: skip
        seconds(*sides["d1c"])  # the first process on a machine compiles the planner's loops
        best = {name: (float("inf"), float("inf")) for name in sides}
        for _ in range(o.rounds):
            for name, commands in sides.items():
                clock, work = seconds(*commands)
                best[name] = min(best[name][0], clock), min(best[name][1], work)
    for name, (clock, work) in best.items():
        print(f"{name:5} {clock:6.2f} s on the clock, {work:6.2f} s of processors")
    print(json.dumps(best))


if __name__ == "__main__":
    main()
