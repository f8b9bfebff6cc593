"""`python -m tests.fuzz --seed S --count N --jobs 2`: random graphs against the oracle.

Graph number i is made from the seed S + i. One JSON line per graph goes to --log, and a run with the same log goes on
where the last one stopped. Mismatches and crashes are cut down and written to --found, as an .onnx with an .npz that
tests/fuzz/test_fuzz.py runs from then on.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import signal
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from tests.fuzz.check import BAD, Verdict, check, make, shrink
from tests.fuzz.found import FOLDER, save
from tests.fuzz.spec import Graph

JIT_EVERY = 10
"""One graph in so many runs as native code."""
TIME_LIMIT = 120


class TimeLimit(BaseException):
    pass


def _stop(*_: object) -> None:
    raise TimeLimit


def engine_of(seed: int) -> str:
    return "jit" if seed % JIT_EVERY == 0 else "numpy"


def one(task: tuple[int, tuple[str, ...], str]) -> dict[str, Any]:
    """Graph number `seed`: its log line."""
    seed, ops, found = task
    warnings.simplefilter("ignore")
    started = time.perf_counter()
    signal.signal(signal.SIGALRM, _stop)
    signal.alarm(TIME_LIMIT)
    graph = None
    try:
        graph = make(random.Random(seed), ops)
        verdict = check(graph, seed, engine_of(seed))
        name = ""
        if verdict.status in BAD:
            signal.alarm(2 * TIME_LIMIT)
            small, last = reduced(graph, seed, verdict)
            name = save(small, seed, last, Path(found)) if found else ""
            text = str(small)
            verdict = last
    except TimeLimit:
        verdict, name = Verdict("timeout"), ""
        text = str(graph)
    finally:
        signal.alarm(0)
    row = {"seed": seed, "status": verdict.status, "seconds": round(time.perf_counter() - started, 3)}
    row["ops"] = [n.op for n in graph.nodes] if graph else []
    if verdict.reason:
        row["reason"] = verdict.reason
    if verdict.status in (*BAD, "timeout"):
        row |= {"graph": text, "saved": name}
    return row


def reduced(graph: Graph, seed: int, verdict: Verdict) -> tuple[Graph, Verdict]:
    """The smallest graph found that fails in the same way."""
    last = verdict

    def fails(candidate: Graph) -> bool:
        nonlocal last
        again = check(candidate, seed, engine_of(seed))
        if again.status != verdict.status or (again.status == "crash" and again.reason[:40] != verdict.reason[:40]):
            return False
        last = again
        return True

    return shrink(graph, fails), last


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--ops", default="", help="only these ops, comma-separated")
    parser.add_argument("--log", type=Path, default=Path(".pytest_cache/fuzz.jsonl"))
    parser.add_argument("--found", type=Path, default=FOLDER, help="where failing graphs go")
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    args.log.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in args.log.read_text().splitlines()] if args.log.exists() else []
    known = {row["seed"] for row in rows}
    ops = tuple(filter(None, args.ops.split(",")))
    found = "" if args.no_save else str(args.found)
    tasks = [(s, ops, found) for s in range(args.seed, args.seed + args.count) if s not in known]
    tally = Counter(r["status"] for r in rows)
    started = time.monotonic()
    with multiprocessing.Pool(args.jobs) as pool, args.log.open("a") as log:
        for i, row in enumerate(pool.imap_unordered(one, tasks, chunksize=8), 1):
            log.write(json.dumps(row) + "\n")
            log.flush()
            tally[row["status"]] += 1
            if row["status"] in (*BAD, "timeout"):
                print(f"--- seed {row['seed']}: {row['status']}: {row.get('reason', '')}\n{row['graph']}", flush=True)
            if i % 1000 == 0:
                print(f"{i} graphs, {time.monotonic() - started:.0f} s: {dict(tally)}", flush=True)
    print(dict(tally))
    return 1 if any(tally[s] for s in (*BAD, "timeout")) else 0


if __name__ == "__main__":
    sys.exit(main())
