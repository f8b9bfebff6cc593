"""The sides of `d1c bench`: a process each, which prepares, and then runs once whenever it is told to."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from d1c.cli.shell import peak_memory
from d1c.errors import D1Error

FEATURES = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "neon", "bf16")
Run = Callable[[], object]


class Job(Protocol):
    """What a side does; it is sent to the process by pickling."""

    def prepare(self) -> tuple[dict[str, Run], dict[str, Any]]:
        """By name what can be run, and facts for the report. Behind the first run of "run"."""


def available() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class Emulated:
    """A program on the emulator: "run", and "alone": its kernel calls without its messages."""

    program: Path
    inputs: Path
    threads: int

    def prepare(self) -> tuple[dict[str, Run], dict[str, Any]]:
        import numpy as np

        import d1rt
        from d1rt.engine_jit import Engine
        from d1rt.jit_object import host

        facts: dict[str, Any] = {}
        started = time.perf_counter()
        loaded = d1rt.load(self.program)
        facts["load_seconds"] = (made := time.perf_counter()) - started
        engine = loaded.engine("jit", self.threads)
        facts["engine_seconds"] = time.perf_counter() - made
        with np.load(self.inputs) as file:
            inputs = {k: file[k] for k in file.files}
        facts["warm_up_seconds"] = _seconds(lambda: loaded.run(inputs, threads=self.threads))
        assert isinstance(engine, Engine)
        kernels, here = engine.kernels, host()
        facts |= {"kernels": kernels.hits + kernels.misses, "compiled": kernels.misses}
        names = {"avx512_bf16": "avx512bf16", "amx_bf16": "amx-bf16"}
        facts["host"] = {
            "cpu": here.cpu,
            "features": [f for f in FEATURES if here.has(names.get(f, f))],
            "bf16_dot": kernels.dot,
            "processors": available(),
        }
        runs: dict[str, Run] = {"run": lambda: loaded.run(inputs, threads=self.threads)}
        alone = engine.calls_alone()
        facts["alone"] = alone is not None
        if alone is not None:
            alone()
            runs["alone"] = alone
        return runs, facts


@dataclass(frozen=True, slots=True)
class Peer:
    """The model on onnxruntime. `frozen`: inputs that the program has as constants."""

    model: Path
    inputs: Path
    frozen: Mapping[str, Any]
    threads: int

    def prepare(self) -> tuple[dict[str, Run], dict[str, Any]]:
        import numpy as np
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        options.log_severity_level = 4  # its refusals are told by us
        options.add_session_config_entry("session.force_spinning_stop", "1")  # not into the other's turn
        with np.load(self.inputs) as file:
            inputs = {k: file[k] for k in file.files}
        try:
            session = onnxruntime.InferenceSession(str(self.model), options, providers=["CPUExecutionProvider"])
            kinds = {i.name: i.type for i in session.get_inputs()}
            inputs |= {k: np.asarray(v, _NUMPY.get(kinds[k], None)) for k, v in self.frozen.items() if k in kinds}
            facts = {"version": onnxruntime.__version__}
            taken = _seconds(lambda: session.run(None, inputs))
        except Exception as error:  # its errors have no common class but this
            raise D1Error(
                f"onnxruntime does not run {self.model}: {' '.join(str(error).split())[:300]}",
                remedy="leave --against out",
            ) from None
        return {"run": lambda: session.run(None, inputs)}, {**facts, "warm_up_seconds": taken}


_NUMPY = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(int32)": "int32", "tensor(bool)": "bool"}


def _seconds(run: Run) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _serve(link: Connection, job: Job) -> None:
    """The process: the facts, then a run for every name received, in the end the peak memory; or a refusal."""
    try:
        runs, facts = job.prepare()
        link.send(facts)
        while (name := link.recv()) is not None:
            link.send(_seconds(runs[name]))
        link.send(peak_memory())
    except D1Error as error:
        link.send(error)
    except (EOFError, KeyboardInterrupt):  # the other end has gone
        pass


class Side:
    """A job in its process. The methods raise what the job refuses, and D1Error where the process dies."""

    def __init__(self, job: Job) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._link, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(theirs, job), daemon=True)
        self._process.start()
        theirs.close()
        self.facts: dict[str, Any] = {}

    def start(self) -> None:
        """Wait until the process is ready; `facts` is what it says."""
        self.facts = self._answer()

    def turn(self, name: str) -> float:
        """One run: its seconds."""
        self._link.send(name)
        seconds: float = self._answer()
        return seconds

    def stop(self) -> int:
        """End the process: the most memory that it has had, bytes."""
        self._link.send(None)
        peak: int = self._answer()
        self._process.join()
        return peak

    def kill(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.join()

    def _answer(self) -> Any:
        try:
            got = self._link.recv()
        except EOFError:
            self._process.join()
            raise D1Error(
                f"a process of the benchmark ended early, with code {self._process.exitcode}",
                remedy="memory may have run out: fewer threads or a smaller batch take less",
            ) from None
        if isinstance(got, D1Error):
            raise got
        return got
