"""Loops that numba compiled once, called without numba: its start takes longer than to plan a small graph.

The first call of a function on a machine compiles it with numba, with which its result is compared; the object is kept
in the user's cache folder under a digest of all that decides it. Later processes link the object and call it through
ctypes, outside the interpreter's lock unless it is short. Where that cannot be done (numba's code is not what is
expected here), numba's function is called. Functions write their results to their last argument and return nothing.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import hashlib
import importlib
import importlib.metadata
import os
import re
import tempfile
import threading
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from d1c.analysis.price_forms import Grid

_LOCK = threading.Lock()
_KEPT: list[Any] = []
"""What the functions' code lives as long as."""
_GRIDS: dict[int, tuple[Grid, list[float]]] = {}
"""Places of machines, as they are passed."""
_MEMORY = """
declare ptr @malloc(i64)
declare void @free(ptr)

define internal ptr @NRT_MemInfo_alloc_aligned(i64 %size, i32 %align) {
  %a = zext i32 %align to i64
  %more = add i64 %a, 64
  %all = add i64 %size, %more
  %p = call ptr @malloc(i64 %all)
  %i = ptrtoint ptr %p to i64
  %up = add i64 %i, %more
  %mask = sub i64 0, %a
  %at = and i64 %up, %mask
  %data = inttoptr i64 %at to ptr
  store i64 1, ptr %p
  %field = getelementptr i8, ptr %p, i64 24
  store ptr %data, ptr %field
  ret ptr %p
}

define internal ptr @NRT_MemInfo_alloc(i64 %size) {
  %p = call ptr @NRT_MemInfo_alloc_aligned(i64 %size, i32 32)
  ret ptr %p
}

define internal ptr @NRT_Allocate(i64 %size) {
  %p = call ptr @malloc(i64 %size)
  ret ptr %p
}

define internal void @NRT_Free(ptr %p) {
  call void @free(ptr %p)
  ret void
}

define internal void @NRT_MemInfo_call_dtor(ptr %p) {
  call void @free(ptr %p)
  ret void
}

define internal void @NRT_incref(ptr %p) alwaysinline {
  %none = icmp eq ptr %p, null
  br i1 %none, label %done, label %count
count:
  %n = load i64, ptr %p
  %more = add i64 %n, 1
  store i64 %more, ptr %p
  br label %done
done:
  ret void
}

define internal void @NRT_decref(ptr %p) alwaysinline {
  %none = icmp eq ptr %p, null
  br i1 %none, label %done, label %count
count:
  %n = load i64, ptr %p
  %less = sub i64 %n, 1
  store i64 %less, ptr %p
  %last = icmp eq i64 %less, 0
  br i1 %last, label %release, label %done
release:
  call void @NRT_MemInfo_call_dtor(ptr %p)
  br label %done
done:
  ret void
}
"""
"""What numba's code asks of its run time: arrays behind a record of 64 bytes with a count of references and where the
data is. The count is not atomic: a call's own arrays are of one thread, and those that it is given have no record."""


class Native:
    """A compiled function of a module of this package. `short`: it takes less time than to get the interpreter's lock
    back from another thread, and keeps it."""

    def __init__(self, module: str, name: str, short: bool = False) -> None:
        self.module, self.name, self.short = module, name, short
        self.call: Callable[[tuple[Any, ...]], int] | None = None

    def __call__(self, *args: Any) -> None:
        """Arguments: integers, floats, contiguous arrays and named tuples of them, of the same types at every call."""
        if self.call is None:
            with _LOCK:
                if self.call is None:
                    self.call = self._linked(args)
        if self.call(args):
            raise RuntimeError(f"{self.module}.{self.name} failed")

    def _linked(self, args: tuple[Any, ...]) -> Callable[[tuple[Any, ...]], int]:
        symbol, types, told = f"d1c_{self.name}", list[Any](), list[str]()
        _types(args, types, told)
        key = hashlib.sha256(" ".join((_digest(), self.module, symbol, *told)).encode()).hexdigest()
        data = _read(key)
        if data is not None:
            return partial(_called, _function(data, symbol, types, self.short))
        try:
            data, expected = self._made(symbol, args)
            call = partial(_called, _function(data, symbol, types, self.short))
            alone = call(args) == 0 and np.array_equal(args[-1], expected)
            if alone:
                _write(key, data)
                return call
        except Exception:  # whatever another version of numba does otherwise
            pass
        return self._in_numba

    def _in_numba(self, args: tuple[Any, ...]) -> int:
        getattr(importlib.import_module(f"d1c.analysis.{self.module}"), self.name)(*args)
        return 0

    def _made(self, symbol: str, args: tuple[Any, ...]) -> tuple[bytes, np.ndarray]:
        """The object, and the result by numba."""
        import llvmlite.binding as llvm

        function = getattr(importlib.import_module(f"d1c.analysis.{self.module}"), self.name)
        mine = copy.deepcopy(args)
        function(*mine)
        (made,) = function.overloads.values()
        names = "|".join(re.findall(r"@(NRT_\w+)\(.*{$", _MEMORY, re.M))
        theirs = rf"^define [^\n]*@({names})\([^}}]*^}}$|^declare [^\n]*@({names})\([^\n]*$"
        text = re.sub(theirs, "", made.library.get_llvm_str(), flags=re.M)
        module = llvm.parse_assembly(text + _MEMORY)
        for f in module.functions:
            if f.name == made.fndesc.llvm_func_name:
                f.name = symbol
            elif not f.is_declaration:
                f.linkage = "internal"
        builder = llvm.create_pass_builder(_target(), llvm.create_pipeline_tuning_options(speed_level=3))
        passes = builder.getModulePassManager()
        passes.add_global_dead_code_eliminate_pass()
        passes.run(module, builder)
        data: bytes = _target().emit_object(module)
        return data, mine[-1]


def _flatten(values: tuple[Any, ...], out: list[float]) -> None:
    """As numba passes them: an array is (owner, parent, elements, bytes of one, data, extents, strides)."""
    for x in values:
        if isinstance(x, np.ndarray):
            where = x.__array_interface__
            if where["strides"] is not None:
                raise ValueError("an array that is not contiguous")
            out += (0, 0, x.size, x.itemsize, where["data"][0], *x.shape, *x.strides)
        elif isinstance(x, Grid):  # always the same
            if id(x) not in _GRIDS:
                flat: list[float] = []
                _flatten(tuple(x), flat)
                _GRIDS[id(x)] = x, flat
            out += _GRIDS[id(x)][1]
        elif isinstance(x, tuple):
            _flatten(x, out)
        else:
            out.append(x)


def _types(values: tuple[Any, ...], types: list[Any], told: list[str]) -> None:
    """Of the flat arguments; what is told of the arguments themselves."""
    for x in values:
        if isinstance(x, np.ndarray):
            types += [ctypes.c_int64] * (5 + 2 * x.ndim)
            told.append(f"{x.dtype}:{x.ndim}")
        elif isinstance(x, tuple):
            _types(x, types, told)
        else:
            types.append(ctypes.c_double if isinstance(x, float) else ctypes.c_int64)
            told.append(type(x).__name__)


def _called(call: Callable[..., int], args: tuple[Any, ...]) -> int:
    flat: list[float] = []
    _flatten(args, flat)
    result = ctypes.c_void_p()  # nothing, or what was raised
    return call(ctypes.byref(result), ctypes.byref(result), *flat)


@cache
def _target() -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3, reloc="pic",
        codemodel="default", jit=True,
    )  # fmt: skip


@cache
def _linker() -> Any:
    import llvmlite.binding as llvm

    return llvm.create_lljit_compiler(_target())


def _function(data: bytes, symbol: str, types: list[Any], short: bool) -> Callable[..., int]:
    import llvmlite.binding as llvm

    builder = llvm.JITLibraryBuilder().add_object_img(data).add_current_process().export_symbol(symbol)
    tracker = builder.link(_linker(), f"{symbol}{len(_KEPT)}")
    _KEPT.append(tracker)
    prototype = ctypes.PYFUNCTYPE if short else ctypes.CFUNCTYPE
    return prototype(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *types)(tracker[symbol])


@cache
def _digest() -> str:
    """Of all that decides the objects but the function."""
    import llvmlite
    import llvmlite.binding as llvm

    told = [llvmlite.__version__, importlib.metadata.version("numba"), llvm.get_host_cpu_name()]
    told.append(llvm.get_host_cpu_features().flatten())
    files = [Path(__file__), *sorted(Path(__file__).parent.glob("price_*.py"))]
    return hashlib.sha256(b"\0".join([*(x.encode() for x in told), *(f.read_bytes() for f in files)])).hexdigest()


def _folders() -> list[Path]:
    base = os.environ.get("XDG_CACHE_HOME")
    user = Path(base) if base else Path.home() / ".cache"
    return [user / "d1c" / "planner", Path(__file__).parent / "__pycache__"]


def _read(key: str) -> bytes | None:
    for folder in _folders():
        with contextlib.suppress(OSError):
            raw = (folder / f"{key}.o").read_bytes()
            if hashlib.sha256(raw[32:]).digest() == raw[:32]:
                return raw[32:]
    return None


def _write(key: str, data: bytes) -> None:
    """In the first folder that can be written, if any."""
    for folder in _folders():
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder, suffix=".tmp", delete=False) as f:
                f.write(hashlib.sha256(data).digest() + data)
            os.replace(f.name, folder / f"{key}.o")
            return
