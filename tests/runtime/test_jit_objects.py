"""The cache of compiled kernels on disk: hits, damage, limits, writers at the same time."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from d1c.target.kernel import Loop, Nest, Operand
from d1c.target.numerics import Recorder
from d1rt import jit_nest
from d1rt.jit_nest import Kernels, build
from d1rt.jit_object import ObjectCache


def relu(n: int) -> Nest:
    """out = max(x, 0) over n f32."""
    r = Recorder("f32")
    io = Operand("f32", (1,), (None,))
    return Nest("map", (Loop("n", n),), 1, (io,), io, 0, epilogue=r.body(r.max(r.inputs[0], 0.0)))


def works(kernels: Kernels) -> bool:
    x, y = np.linspace(-1, 1, 21, dtype=np.float32), np.zeros(21, np.float32)
    kernels.call("relu", np.array([y.ctypes.data, x.ctypes.data, 21], np.int64))
    return np.array_equal(y, np.maximum(x, 0))


def test_second_build_reads_the_objects(tmp_path: Path) -> None:
    first, second = build({"relu": relu(21)}, folder=tmp_path), build({"relu": relu(21)}, folder=tmp_path)
    assert first.misses and not first.hits
    assert second.hits == first.misses and not second.misses
    assert works(first) and works(second)
    assert build({"relu": relu(21)}, cached=False).misses == first.misses


def test_damaged_objects_are_rebuilt(tmp_path: Path) -> None:
    first = build({"relu": relu(21)}, folder=tmp_path)
    for i, entry in enumerate(sorted(tmp_path.iterdir())):
        entry.write_bytes(entry.read_bytes()[:-7] if i % 2 else b"")
    again = build({"relu": relu(21)}, folder=tmp_path)
    assert again.misses == first.misses and works(again)
    assert build({"relu": relu(21)}, folder=tmp_path).hits == first.misses


def test_a_folder_that_cannot_be_written_is_no_cache(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    kernels = build({"relu": relu(21)}, folder=blocked)
    assert kernels.misses and works(kernels)


def test_code_for_another_cpu_is_another_object(tmp_path: Path) -> None:
    first = build({"relu": relu(21)}, folder=tmp_path)
    assert build({"relu": relu(21)}, cpu="x86-64-v3", folder=tmp_path).misses == first.misses


def test_a_cached_kernel_makes_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What decides its text names its object: the record, and the modules that make the text."""
    first = build({"relu": relu(21), "other": relu(23)}, folder=tmp_path)
    made: list[Nest] = []
    text = jit_nest.nest_text
    monkeypatch.setattr(jit_nest, "nest_text", lambda nest, *how: made.append(nest) or text(nest, *how))
    again = build({"again": relu(21), "equal": relu(21), "other": relu(23)}, folder=tmp_path)
    assert again.hits == first.misses and not made and again.address("again") == again.address("equal")
    assert not build({"same": relu(39)}, folder=tmp_path).misses and made == [relu(39)]  # another record, its text
    assert build({"relu": relu(24)}, folder=tmp_path).misses == 1 and made[1:] == [relu(24)]
    monkeypatch.setattr(jit_nest, "generator", lambda: "another")
    assert works(build({"relu": relu(21)}, folder=tmp_path)) and made[2:] == [relu(21)]


def test_the_oldest_objects_go_first(tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path, limit=2500)
    for i in range(4):
        cache.get(str(i), lambda: bytes(1000))
        os.utime(tmp_path / f"{i}.o", (i, i))
    cache.trim()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2.o", "3.o"]


def test_writers_at_the_same_time(tmp_path: Path) -> None:
    right: list[bool] = []
    threads = [
        threading.Thread(target=lambda: right.append(works(build({"relu": relu(21)}, folder=tmp_path))))
        for _ in range(4)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert right == [True] * 4
    assert {p.suffix for p in tmp_path.iterdir()} == {".o"}
