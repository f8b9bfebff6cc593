"""LLVM text to native code: target machine, object files kept on disk between runs, linking into the process."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm

from d1c.target import dtypes, kernel

LIMIT = 256 << 20
"""Bytes of object files that a cache folder keeps; the least recently used go first."""
_MAGIC = b"d1c-object-1\n"


@dataclass(frozen=True, slots=True)
class Host:
    """What code is generated for: an LLVM cpu name and its feature string (+name,-name)."""

    cpu: str
    features: str

    def has(self, feature: str) -> bool:
        return f"+{feature}" in self.features.split(",")


@cache
def host() -> Host:
    """The machine that this process runs on."""
    return Host(llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten())


@cache
def _initialize() -> None:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()


@cache
def target_machine(target: Host, opt: int = 2) -> Any:
    """An LLVM target machine."""
    _initialize()
    triple = llvm.Target.from_default_triple()
    # aarch64: constants may come to lie farther from the code than its short addresses reach.
    reloc, model = ("static", "large") if triple.name.startswith("aarch64") else ("pic", "default")
    return triple.create_target_machine(
        cpu=target.cpu, features=target.features, opt=opt, reloc=reloc, codemodel=model, jit=True
    )


def default_folder() -> Path:
    """The user's cache folder for compiled kernels."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "d1c" / "jit"


class ObjectCache:
    """Object files by content key in one folder. Writers may run at the same time; a damaged file counts as missing.
    A folder that cannot be written is the same as no cache. Counts `hits` and `misses`."""

    def __init__(self, folder: Path | None, limit: int = LIMIT) -> None:
        self.folder, self.limit = folder, limit
        self.hits = self.misses = 0

    def get(self, key: str, make: Callable[[], bytes]) -> bytes:
        """The object of `key`, made and stored if it is not there."""
        found = self._read(key)
        if found is not None:
            self.hits += 1
            return found
        self.misses += 1
        data = make()
        self.put(key, data)
        return data

    def peek(self, key: str) -> bytes:
        """What is stored under `key`, or nothing; it does not count."""
        return self._read(key) or b""

    def _read(self, key: str) -> bytes | None:
        if self.folder is None:
            return None
        path = self.folder / f"{key}.o"
        try:
            raw = path.read_bytes()
        except OSError:
            return None
        head, data = raw[: len(_MAGIC) + 4], raw[len(_MAGIC) + 4 :]
        if head != _MAGIC + zlib.crc32(data).to_bytes(4, "little"):
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return data

    def put(self, key: str, data: bytes) -> None:
        """Store, where the folder can be written."""
        if self.folder is None:
            return
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self.folder, suffix=".tmp")
            try:
                with os.fdopen(handle, "wb") as f:
                    f.write(_MAGIC + zlib.crc32(data).to_bytes(4, "little") + data)
                os.replace(temporary, self.folder / f"{key}.o")
            except OSError:
                os.unlink(temporary)

    def trim(self) -> None:
        """Delete the least recently used files beyond the limit."""
        if self.folder is None:
            return
        files = []
        with contextlib.suppress(OSError):
            for entry in os.scandir(self.folder):
                with contextlib.suppress(OSError):
                    files.append((entry.stat().st_mtime, entry.stat().st_size, entry.path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self.limit:
                break
            total -= size
            with contextlib.suppress(OSError):
                os.unlink(path)


def compile_text(text: str, target: Host) -> bytes:
    """One module to a native object. No pass pipeline: it gains nothing on text that is already SSA."""
    _initialize()
    # A context of its own is freed with the module.
    module = llvm.parse_assembly(text, context=llvm.create_context())
    module.verify()
    data: bytes = target_machine(target).emit_object(module)
    return data


def compile_all(texts: Iterable[str], target: Host, cache: ObjectCache) -> list[bytes]:
    """The objects of many modules, from the cache or compiled. One by one: llvmlite holds a lock over every call."""
    objects = [cache.get(_digest(t, target), lambda t=t: compile_text(t, target)) for t in texts]  # type: ignore[misc]
    if cache.misses:
        cache.trim()
    return objects


def compile_made(
    made: Iterable[tuple[str, Callable[[], str]]], target: Host, cache: ObjectCache
) -> list[tuple[str, bytes]]:
    """The same of modules whose text is made only where it must be. `made`: what decides a text, and what makes it.
    Per module its object's key, the same for equal texts, and the object."""
    objects: dict[str, bytes] = {}
    keys = []
    for told, make in made:
        name, text = _digest(f"what decides a text: {told}", target), None
        key = cache.peek(name).decode()
        if not key:
            text = make()
            key = _digest(text, target)
            cache.put(name, key.encode())
        if key not in objects:

            def compiled(text: str | None = text, make: Callable[[], str] = make) -> bytes:
                return compile_text(make() if text is None else text, target)

            objects[key] = cache.get(key, compiled)
        keys.append(key)
    if cache.misses:
        cache.trim()
    return [(k, objects[k]) for k in keys]


def _digest(text: str, target: Host) -> str:
    version = f"{llvmlite.__version__} {llvm.llvm_version_info}"
    return hashlib.sha256("\0".join((text, target.cpu, target.features, version)).encode()).hexdigest()


@cache
def generator() -> str:
    """A digest of the modules that make texts: with the record of a kernel it decides that kernel's text."""
    files = [*sorted(Path(__file__).parent.glob("jit_*.py")), *(Path(str(m.__file__)) for m in (dtypes, kernel))]
    return hashlib.sha256(b"\0".join(f.read_bytes() for f in files)).hexdigest()


@cache
def _lljit() -> Any:
    return llvm.create_lljit_compiler(target_machine(host()))


class Library:
    """Objects linked into this process: `address` by function name. The code lives as long as this object."""

    _count = 0

    def __init__(self, exports: Mapping[str, tuple[str, bytes]]) -> None:
        """`exports`: by name, a function of an object file and the file's bytes."""
        self._trackers: list[Any] = []
        self._address: dict[str, int] = {}
        for name, (function, data) in exports.items():
            Library._count += 1
            builder = llvm.JITLibraryBuilder().add_object_img(data).add_current_process().export_symbol(function)
            tracker = builder.link(_lljit(), f"d1rt{Library._count}")
            self._trackers.append(tracker)
            self._address[name] = tracker[function]

    def address(self, name: str) -> int:
        return self._address[name]
