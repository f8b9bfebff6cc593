"""The .d1x container: a stored zip archive that anyone can open, written to the same bytes for the same content.

    manifest.json              canonical JSON, "d1x": version
    program.safetensors        the program's tables
    weights/NAME.safetensors   weights, in the order in which they stand in SRAM
    blobs/NAME                 bytes

docs/binary.md has the layout to the byte. `read` checks all of it before it returns anything; what it returns are
read-only views of the mapped file.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import mmap
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import ml_dtypes
import numpy as np

from d1c.errors import LoadError, UsageError

VERSION = 4
PAGE = 4096
TENSOR_ALIGN = 64
MAX_JSON = 64 << 20
"""Bytes of the manifest or of one tensor header that `read` accepts."""
MAX_RANK = 32
_PAD = "\0"  # suffix of filler tensors: sorts right after the tensor that it fills up, before every other name
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,199}")
_ALIGN_EXTRA = 0xD935  # the id that zip aligners use: u16 alignment, then zeros
_ENTRY = re.compile(r"(?:manifest\.json|program\.safetensors|weights/(.+)\.safetensors|blobs/(.+))")

_DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"), "U32": np.dtype("<u4"), "U16": np.dtype("<u2"), "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}  # fmt: skip
_ALLOWED = frozenset(_DTYPES.values())
_CODE = {t: code for code, t in _DTYPES.items()}
_ORDER = {_DTYPES[c]: i for i, c in enumerate("U64 I64 F64 F32 U32 I32 BF16 F16 U16 I16 I8 U8 BOOL".split())}
"""In which tensors stand in a file: the safetensors library's, widest types first."""
_LARGE = 1 << 16
"""Bytes of a tensor from which it is written by itself."""

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Container:
    """A checked .d1x. Arrays are read-only views of the file's mapping, which lives as long as any of them."""

    manifest: dict[str, Any]
    arrays: Tensors
    weights: dict[str, Tensors]
    blobs: dict[str, bytes]


# --- writing ---------------------------------------------------------------------------------------------------------


def write(
    path: str | Path,
    manifest: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    weights: Mapping[str, Mapping[str, np.ndarray]],
    blobs: Mapping[str, bytes],
) -> None:
    """Writes a .d1x beside `path`, then renames it: at no time is there half a file under that name.

    Names of weight files and blobs: letters, digits, `_`, `.`, `-`. Raises ValueError for content that the format
    cannot hold (programming errors) and UsageError when the file cannot be written.
    """
    path = Path(path)
    if "d1x" in manifest:
        raise ValueError("manifest key 'd1x' is the container's own")
    text = json.dumps({**manifest, "d1x": VERSION}, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    if len(text) > MAX_JSON:
        raise ValueError(f"manifest has {len(text)} bytes, more than {MAX_JSON}; put bulk into arrays or blobs")
    for name in (*weights, *blobs):
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name for a weight file or blob")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            with open(part, "wb") as file:
                _write_zip(file, text, arrays, weights, blobs)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as e:
        raise UsageError(f"cannot write {path}: {e.strerror or e}", remedy="choose another place") from e
    except zipfile.LargeZipFile as e:
        raise UsageError(f"cannot write {path}: more than 4 GiB, which this version of .d1x cannot hold") from e


def _write_zip(
    file: io.BufferedWriter,
    manifest: bytes,
    arrays: Mapping[str, np.ndarray],
    weights: Mapping[str, Mapping[str, np.ndarray]],
    blobs: Mapping[str, bytes],
) -> None:
    names = ["manifest.json", "program.safetensors"]
    names += sorted([f"weights/{n}.safetensors" for n in weights] + [f"blobs/{n}" for n in blobs])
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=False) as archive:
        for name in names:
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.create_system = 3
            info.external_attr = 0o100644 << 16
            if name == "manifest.json":
                archive.writestr(info, manifest)
            elif name.startswith("blobs/"):
                archive.writestr(info, bytes(blobs[name[len("blobs/") :]]))
            else:
                tensors = (
                    arrays if name == "program.safetensors" else weights[name[len("weights/") : -len(".safetensors")]]
                )
                header, pieces = _serialize(tensors, name)
                # The local header's extra field moves the tensors' bytes to a page boundary of the file.
                fill = -(file.tell() + 30 + len(name) + 6 + len(header)) % PAGE
                info.extra = struct.pack("<HHH", _ALIGN_EXTRA, 2 + fill, PAGE) + bytes(fill)
                info.file_size = len(header) + sum(p.nbytes for p in pieces)
                with archive.open(info, "w") as entry:
                    entry.write(header)
                    for large, group in itertools.groupby(pieces, lambda p: p.nbytes >= _LARGE):
                        for piece in group if large else (b"".join(group),):
                            entry.write(piece)
                info.extra = b""  # once is enough: the central directory needs no filler


def _serialize(tensors: Mapping[str, np.ndarray], where: str) -> tuple[bytes, list[memoryview]]:
    """A safetensors file, as its header and the bytes of its tensors, which are not copied. Every tensor is on 64 B:
    the format has no holes, so filler tensors stand between."""
    filled: Tensors = {}
    for name, array in tensors.items():
        if not isinstance(name, str) or _PAD in name:
            raise ValueError(f"{where}: tensor name {name!r} holds a zero character")
        little = np.asarray(array, order="C")
        little = little.astype(little.dtype.newbyteorder("<"), copy=False)
        if little.dtype not in _ALLOWED or little.ndim > MAX_RANK:
            raise ValueError(f"{where}: tensor {name!r}: {little.dtype} of rank {little.ndim} cannot be stored")
        filled[name] = little
        missing = -little.nbytes % TENSOR_ALIGN
        if missing:
            filled[name + _PAD] = np.zeros(missing // little.itemsize, little.dtype)
    entries, pieces, at = dict[str, object](), list[memoryview](), 0
    for name in sorted(filled, key=lambda n: (_ORDER[filled[n].dtype], n)):
        array, end = filled[name], at + filled[name].nbytes
        entries[name] = {"dtype": _CODE[array.dtype], "shape": array.shape, "data_offsets": (at, end)}
        if end > at:
            pieces.append(array.reshape(-1).view(np.uint8).data)
        at = end
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_JSON:
        raise ValueError(f"{where}: header larger than {MAX_JSON} bytes")
    return struct.pack("<Q", len(text)) + text, pieces


# --- reading ---------------------------------------------------------------------------------------------------------


def read(path: str | Path) -> Container:
    """The content of a .d1x, all of it checked (structure, CRCs, header, shapes, alignment).

    Raises LoadError for anything that `write` would not have written, saying what and where; UsageError when there
    is no such file.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode):
                raise UsageError(f"{path} is not a file", where=str(path))
            if info.st_size < 22:
                raise _Bad(f"{info.st_size} bytes are too few for a zip archive")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return _container(memoryview(mapped))
    except _Bad as e:
        raise LoadError(
            f"{path.name}: {e}", where=str(path), rule="a .d1x is read only when all of it is intact",
            remedy="compile the model again, or copy the file again",
        ) from None  # fmt: skip
    except OSError as e:
        raise UsageError(f"cannot read {path}: {e.strerror or e}", remedy="check the path") from e


class _Bad(Exception):
    """What is wrong with the file; `read` makes a LoadError of it."""


def _bad(where: str, what: str) -> NoReturn:
    raise _Bad(f"{where}: {what}" if where else what)


def _container(view: memoryview) -> Container:
    manifest: dict[str, Any] | None = None
    arrays: Tensors | None = None
    weights: dict[str, Tensors] = {}
    blobs: dict[str, bytes] = {}
    for name, start, size in _entries(view):
        match = _ENTRY.fullmatch(name)
        if not match or not all(_NAME.fullmatch(g) for g in match.groups() if g is not None):
            _bad(name, "unknown entry")
        if match[2] is not None:
            blobs[match[2]] = bytes(view[start : start + size])
        elif match[1] is not None:
            weights[match[1]] = _tensors(view, name, start, size)
        elif name == "manifest.json":
            manifest = _json_object(view, name, start, size)
        else:
            arrays = _tensors(view, name, start, size)
    if manifest is None or arrays is None:
        _bad("", f"{'manifest.json' if manifest is None else 'program.safetensors'} is missing")
    version = manifest.pop("d1x", None)
    if type(version) is not int or version != VERSION:
        _bad("manifest.json", f"format version {str(version)[:20]} where this build reads {VERSION}")
    return Container(manifest, arrays, weights, blobs)


_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
_END = struct.Struct("<4sHHHHIIH")


def _entries(view: memoryview) -> list[tuple[str, int, int]]:
    """(name, start, size) of every entry. Entries must tile the file without gap or overlap, and match their CRC."""
    end_at = len(view) - _END.size
    mark, disk, cd_disk, here, count, cd_size, cd_at, comment = _END.unpack_from(view, end_at)
    if mark != b"PK\5\6" or disk or cd_disk or here != count or comment:
        _bad("", "no zip end record: not a .d1x, or truncated")
    if cd_at + cd_size != end_at:
        _bad("", f"zip directory at {cd_at} of {cd_size} bytes does not end at {end_at}")
    found: list[tuple[str, int, int]] = []
    names: set[str] = set()
    at, expected = cd_at, 0
    for number in range(count):
        if at + _CENTRAL.size > end_at:
            _bad("", f"zip directory is cut off in entry {number}")
        f = _CENTRAL.unpack_from(view, at)
        name_len, extra_len, comment_len = f[10:13]
        mark, method, crc, packed, size, local = f[0], f[4], f[7], f[8], f[9], f[16]
        raw = bytes(view[at + _CENTRAL.size : at + _CENTRAL.size + name_len])
        at += _CENTRAL.size + name_len
        name = raw.decode("ascii", "replace")
        if mark != b"PK\1\2" or at > end_at or not name.isascii() or extra_len or comment_len:
            _bad("", f"zip directory entry {number} is damaged")
        fixed = (f[1], f[2], f[3], f[5], f[6], f[13], f[14], f[15])
        if method or packed != size or fixed != (0x0314, 20, 0, 0, 0x21, 0, 0, 0o100644 << 16):
            _bad(name, "entry is compressed, encrypted or has attributes that d1c does not write")
        if name in names:
            _bad(name, "entry occurs twice")
        names.add(name)
        if local != expected:
            _bad(name, f"entry starts at {local} where {expected} is expected: overlap or gap")
        expected = _local_entry(view, name, raw, local, cd_at, crc, size, found)
    if at != end_at or expected != cd_at:
        _bad("", "bytes between the zip's entries and its directory, or after it")
    return found


def _local_entry(
    view: memoryview,
    name: str,
    raw: bytes,
    local: int,
    limit: int,
    crc: int,
    size: int,
    found: list[tuple[str, int, int]],
) -> int:
    """Checks one entry's local header and data against the directory; returns where the entry ends."""
    if local + _LOCAL.size > limit:
        _bad(name, "entry lies outside the file")
    fields = _LOCAL.unpack_from(view, local)
    extra_len = fields[10]
    start: int = local + _LOCAL.size + len(raw) + extra_len
    if fields[:10] != (b"PK\3\4", 20, 0, 0, 0, 0x21, crc, size, size, len(raw)):
        _bad(name, "local header differs from the zip directory")
    if start + size > limit:
        _bad(name, f"entry of {size} bytes at {start} lies outside the file")
    if bytes(view[local + _LOCAL.size : start - extra_len]) != raw:
        _bad(name, "name in the local header differs from the zip directory")
    extra = bytes(view[start - extra_len : start])
    if extra and (
        extra_len < 6 or struct.unpack_from("<HHH", extra) != (_ALIGN_EXTRA, extra_len - 4, PAGE) or any(extra[6:])
    ):
        _bad(name, "unknown extra field")
    if zlib.crc32(view[start : start + size]) != crc:
        _bad(name, f"CRC of {size} bytes at {start} is wrong: the content is damaged")
    found.append((name, start, size))
    return start + size


def _json_object(view: memoryview, where: str, start: int, size: int) -> dict[str, Any]:
    if size > MAX_JSON:
        _bad(where, f"{size} bytes of JSON, more than {MAX_JSON}")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ValueError("a key occurs twice")
        return result

    def constant(text: str) -> NoReturn:
        raise ValueError(f"{text} is not JSON")

    try:
        text = bytes(view[start : start + size]).decode("utf-8")
        result = json.loads(text, object_pairs_hook=once, parse_constant=constant)
    except (ValueError, RecursionError) as e:
        _bad(where, f"JSON at {start}: {str(e)[:100]}")
    if not isinstance(result, dict):
        _bad(where, "JSON is not an object")
    return result


def _tensors(view: memoryview, where: str, start: int, size: int) -> Tensors:
    """The tensors of a safetensors entry as views. Offsets must tile the data section, in any order of names."""
    header_size = int.from_bytes(view[start : start + 8], "little") if size >= 8 else size
    if size < 8 or header_size > size - 8:
        _bad(where, f"tensor header of {header_size} bytes in an entry of {size}")
    header = _json_object(view, where, start + 8, header_size)
    data_at, data_size = start + 8 + header_size, size - 8 - header_size
    if data_at % PAGE:
        _bad(where, f"tensor data at {data_at} is not on a page of {PAGE} bytes")
    header.pop("__metadata__", None)
    result: Tensors = {}
    spans: list[tuple[int, int]] = []
    for name, fields in header.items():
        begin, end, kind, shape = _tensor_fields(where, name, fields, data_size)
        spans.append((begin, end))
        if name.endswith(_PAD):
            continue
        label = f"{where}: tensor {name[:80]!r}"
        if begin % TENSOR_ALIGN:
            _bad(label, f"starts at {begin}, not on {TENSOR_ALIGN} bytes")
        raw = np.frombuffer(view[data_at + begin : data_at + end], np.uint8)
        if kind == "BOOL" and raw.size and int(raw.max()) > 1:
            _bad(label, "holds a bool that is neither 0 nor 1")
        try:
            result[name] = raw.view(_DTYPES[kind]).reshape(shape)
        except (ValueError, OverflowError) as e:
            _bad(label, f"shape: {e}")
    expected = 0
    for begin, end in sorted(spans):
        if begin != expected:
            _bad(where, f"tensor bytes from {begin} where {expected} is expected: overlap or gap")
        expected = end
    if expected != data_size:
        _bad(where, f"tensors cover {expected} of {data_size} bytes")
    return dict(sorted(result.items()))


def _tensor_fields(where: str, name: str, fields: Any, limit: int) -> tuple[int, int, str, tuple[int, ...]]:
    """(begin, end, dtype, shape) of one header row, checked against each other and against the data section's size."""
    label = f"{where}: tensor {name[:80]!r}"
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        _bad(label, "needs exactly dtype, shape and data_offsets")
    kind, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(kind, str) or kind not in _DTYPES:
        _bad(label, f"unknown dtype {str(kind)[:20]!r}")
    for key, value in (("shape", shape), ("data_offsets", offsets)):
        if not isinstance(value, list) or len(value) > MAX_RANK or not all(type(v) is int and v >= 0 for v in value):
            _bad(label, f"{key} is not a list of at most {MAX_RANK} sizes")
    if len(offsets) != 2 or not offsets[0] <= offsets[1] <= limit:
        _bad(label, f"data_offsets {str(offsets)[:60]} outside the {limit} bytes of data")
    needed = math.prod(shape) * _DTYPES[kind].itemsize
    if needed != offsets[1] - offsets[0]:
        _bad(label, f"shape {str(shape)[:60]} of {kind} needs another size than {offsets[1] - offsets[0]} bytes")
    return offsets[0], offsets[1], kind, tuple(shape)
