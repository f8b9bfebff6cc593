"""Compile and run times of one network beside onnxruntime's f32, and the peak memory of each.

    python tests/bench/bench_networks.py resnet50 [--precision bf16] [--target d1-tile] [--batch 1] [--threads 2]

The emulator and onnxruntime have a process each, which take turns with one run at a time, so that both see the same
load of the host; times are medians, after one run that does not count. `load` is the making of the engine: the order
of commands, kernels (from the object cache where they are there), memory. Peak memory is the resident set's, of the
whole process: reading and compiling the model included. Prints one line of JSON, then a line to read.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "runtime")]
Run = Callable[[], Any]


def peak_bytes() -> int:
    """The largest resident set that this process has had."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says starts with the parent's
        return next(int(x.split()[1]) for x in status.read_text().splitlines() if x.startswith("VmHWM")) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def emulator(model: Path, inputs: dict[str, Any], o: argparse.Namespace) -> tuple[Run, dict[str, Any]]:
    import d1c
    import d1rt

    started, cpu = time.perf_counter(), time.process_time()
    shapes = {k: v.shape for k, v in inputs.items()}
    program = d1c.compile(model, target=o.target, precision=o.precision, shapes=shapes)
    compiled = time.perf_counter()
    facts = {"compile_s": compiled - started, "compile_cpu_s": time.process_time() - cpu}
    facts["compile_peak_bytes"] = peak_bytes()
    loaded = d1rt.load(program.target)
    loaded.engine("jit", o.threads)
    facts["load_s"] = time.perf_counter() - compiled
    facts["machine_us"] = program.summary()["time_us"]
    return lambda: loaded.run(inputs, threads=o.threads), facts


def reference(model: Path, inputs: dict[str, Any], o: argparse.Namespace) -> tuple[Run, dict[str, Any]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = o.threads, 1
    options.add_session_config_entry("session.force_spinning_stop", "1")  # not into the other's turn
    started = time.perf_counter()
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, inputs), {"load_s": time.perf_counter() - started}


def work(o: argparse.Namespace) -> None:
    """The child's side: prepare, then one run per line of stdin; the seconds, in the end the peak."""
    import numpy as np

    folder = Path(o.child[1])
    inputs = dict(np.load(folder / "inputs.npz"))
    run, facts = {"d1": emulator, "ort": reference}[o.child[0]](Path((folder / "model").read_text()), inputs, o)
    run()
    print(json.dumps(facts), flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        run()
        print(time.perf_counter() - started, flush=True)
    print(peak_bytes(), flush=True)


def measure(o: argparse.Namespace, folder: Path) -> dict[str, Any]:
    children: dict[str, subprocess.Popen[str]] = {}
    facts: dict[str, dict[str, Any]] = {}
    for name in ("d1", "ort"):
        command = [sys.executable, __file__, *sys.argv[1:], "--child", name, str(folder)]
        children[name] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        facts[name] = json.loads(answer(children[name]))
    seconds: dict[str, list[float]] = {"d1": [], "ort": []}
    for _ in range(o.rounds):
        for name, child in children.items():
            assert child.stdin is not None
            child.stdin.write("run\n")
            child.stdin.flush()
            seconds[name].append(float(answer(child)))
    for name, child in children.items():
        assert child.stdin is not None
        child.stdin.close()
        facts[name] |= {"run_s": statistics.median(seconds[name]), "peak_bytes": int(answer(child))}
        child.wait()
    ratio = facts["d1"]["run_s"] / facts["ort"]["run_s"]
    told = {k: getattr(o, k) for k in ("name", "target", "precision", "batch", "threads", "rounds")}
    return {**told, "d1": facts["d1"], "onnxruntime": facts["ort"], "ratio": ratio}


def answer(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        raise SystemExit(f"a process ended early, with code {child.wait()}")
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description="One network on the emulator and on onnxruntime, side by side.")
    parser.add_argument("name", help="a network of tests/all_networks.py")
    parser.add_argument("--precision", default="bf16", choices=("bf16", "f32"))
    parser.add_argument("--target", default="d1-tile")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    o = parser.parse_args()
    if o.child:
        work(o)
        return
    import numpy as np

    from tests.all_networks import NAMES, network

    if o.name not in NAMES:
        parser.error(f"no network {o.name!r}; there are {', '.join(NAMES)}")
    got = network(o.name, o.batch)
    if got is None:
        raise SystemExit(f"MISSING: the package with {o.name} cannot be had here")
    model, inputs = got
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "inputs.npz", **inputs)
        if not isinstance(model, Path):
            (folder / "model.onnx").write_bytes(model.SerializeToString())
            model = folder / "model.onnx"
        (folder / "model").write_text(str(model))
        del got
        result = measure(o, folder)
    print(json.dumps(result))
    d, r = result["d1"], result["onnxruntime"]
    print(
        f"{o.name} batch {o.batch} {o.precision} on {o.target}, {o.threads} threads: compile {d['compile_s']:.1f} s "
        f"({d['compile_cpu_s']:.1f} s of CPU), "
        f"load {d['load_s']:.1f} s, run {d['run_s'] * 1e3:,.1f} ms against {r['run_s'] * 1e3:,.1f} ms of onnxruntime "
        f"f32 ({result['ratio']:.2f}x), peak memory {d['peak_bytes'] / 1e6:,.0f} MB against "
        f"{r['peak_bytes'] / 1e6:,.0f} MB"
    )


if __name__ == "__main__":
    main()
