"""Programs as files: `save` and `load` map a Program to the .d1x container (docs/binary.md) and back, bit for bit.

The manifest holds buffers, roles, ports, placements and reports as JSON; per-core integers and layouts stand in it as
their text, floats as hexadecimal text (a fill may be -inf). Kernels are the blob `kernels`, one record after another;
movements are int32 arrays of program.safetensors; weights are one safetensors file, mapped and never copied by `load`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np

from d1c.errors import LoadError
from d1c.target import binary
from d1c.target.dtypes import NARROW, dtype
from d1c.target.encoding import EncodingError, decode, encode
from d1c.target.kernel import Nest
from d1c.target.mesh import CoreInt, Layout, Mesh
from d1c.target.movement import ComponentExchange, Cut, Exchange, Pieces
from d1c.target.program import COMMANDS, Buffer, Command, Fetch, Loop, Placement, Port, Program, Role, To, every
from d1c.target.program_check import MAX_CORES, MAX_DEPTH, check

WEIGHTS = "weights"
"""The one group of weight tensors."""
_PIECES = tuple(f.name for f in dataclasses.fields(Pieces))
_MANIFEST = (
    "buffers", "exchanges", "info", "inputs", "kernels", "layers", "machine", "mesh", "outputs", "placements", "roles",
)  # fmt: skip
T = TypeVar("T")


def save(program: Program, path: str | Path) -> None:
    """Write `program` to `path`; the same program gives the same bytes.

    Raises LoadError for a program that `load` would refuse (nothing is written then), ValueError or TypeError where
    `info` or `layers` are not JSON."""
    check(program, f"program for {Path(path).name}")
    arrays: dict[str, np.ndarray] = {}
    exchanges = []
    known: dict[object, list[int]] = {}
    for n, x in enumerate(program.exchanges):
        components: list[dict[str, object]] = []
        for k, c in enumerate(x.components):
            if (first := known.setdefault(c.key, [n, k])) != [n, k]:
                components.append({"like": first})
                continue
            for name, values in (*((f, getattr(c.pieces, f)) for f in _PIECES), ("real", c.real), ("extent", c.length)):
                arrays[f"exchange{n}.{k}.{name}"] = _int32(values)
            axes = {"target_axes": list(c.target_axes), "source_axes": list(c.source_axes)}
            components.append({**axes, "window": c.window, "owned": c.owned})
        exchanges.append(
            {"components": components, "source_held": list(x.source_held), "target_held": list(x.target_held),
             "plan_axes": list(x.plan_axes), "cut": [] if x.cut is None else [*x.cut.owned, *x.cut.window]}
        )  # fmt: skip
    manifest = {
        "machine": dict(program.machine), "mesh": [list(a) for a in program.mesh.axes], "info": dict(program.info),
        "layers": [dict(layer) for layer in program.layers], "buffers": [_encode(b) for b in program.buffers],
        "kernels": [name for name, _ in program.kernels], "exchanges": exchanges,
        "placements": [_encode(p) for p in program.placements], "inputs": [_encode(p) for p in program.inputs],
        "outputs": [_encode(p) for p in program.outputs],
        "roles": [
            {"name": r.name, "cores": [list(c) for c in r.cores],
             "threads": [_commands(t) for t in r.threads]}
            for r in program.roles
        ],
    }  # fmt: skip
    blobs = {"kernels": b"".join(encode(nest) for _, nest in program.kernels)}
    plain = {name: array.view(np.uint8) if _narrow(array.dtype) else array for name, array in program.weights.items()}
    binary.write(path, manifest, arrays, {WEIGHTS: plain} if plain else {}, blobs)


def load(path: str | Path) -> Program:
    """The program in a .d1x, checked by program_check.check; weights are read-only views of the mapped file.

    Raises LoadError, which says what is wrong, where and what to do; UsageError when there is no such file."""
    container = binary.read(path)
    where, m = str(path), container.manifest
    if set(m) != set(_MANIFEST):
        odd = sorted(set(m) ^ set(_MANIFEST))
        _bad(where, f"manifest.json: {'unknown' if odd[0] in m else 'missing'} key {odd[0]!r}")
    if set(container.blobs) != {"kernels"} or set(container.weights) - {WEIGHTS}:
        given = [*container.blobs, *container.weights]
        _bad(where, f"entries {_short(given)}: expected blobs/kernels and weights/{WEIGHTS}")
    mesh = _mesh(where, m["mesh"])
    program = Program(
        _object(where, "machine", m["machine"]), mesh,
        tuple(_decode(where, f"buffer {i}", Buffer, b) for i, b in _rows(where, "buffers", m["buffers"])),
        _kernels(where, m["kernels"], container.blobs["kernels"]),
        _exchanges(where, mesh, m["exchanges"], container.arrays),
        tuple(_role(where, i, r) for i, r in _rows(where, "roles", m["roles"])),
        tuple(_decode(where, f"placement {i}", Placement, p) for i, p in _rows(where, "placements", m["placements"])),
        tuple(_decode(where, f"input {i}", Port, p) for i, p in _rows(where, "inputs", m["inputs"])),
        tuple(_decode(where, f"output {i}", Port, p) for i, p in _rows(where, "outputs", m["outputs"])),
        container.weights.get(WEIGHTS, {}),
        tuple(_object(where, f"layer {i}", v) for i, v in _rows(where, "layers", m["layers"])),
        _object(where, "info", m["info"]),
    )  # fmt: skip
    program = replace(program, weights=_typed(program))
    check(program, where)
    return program


def _narrow(t: np.dtype) -> bool:
    """Whether a type takes a byte that the file holds as u8: its meaning is that of the buffer."""
    return t in {d.numpy for d in NARROW}


def _typed(program: Program) -> Mapping[str, np.ndarray]:
    """The weights in the element types of the buffers that they are placed in or fetched to."""
    weights = dict(program.weights)
    uses = [(p.array, p.buffer) for p in program.placements]
    commands = (c for role in program.roles for thread in role.threads for c in every(thread))
    uses += [(c.array, c.target) for c in commands if isinstance(c, Fetch)]
    for name, buffer in uses:
        array = weights.get(name)
        if array is None or array.dtype != np.uint8 or not 0 <= buffer < len(program.buffers):
            continue  # `check` says what is wrong
        if program.buffers[buffer].dtype in {d.name for d in NARROW}:
            weights[name] = array.view(dtype(program.buffers[buffer].dtype).numpy)
    return weights


def _bad(where: str, what: str) -> NoReturn:
    raise LoadError(
        what, where=where, rule="a program is run only when all of it is well-formed",
        remedy="compile the model again with this version of d1c",
    ) from None  # fmt: skip


def _int32(values: np.ndarray) -> np.ndarray:
    """int32 of an integer array; ValueError rather than a wrapped number."""
    small = np.asarray(values).astype(np.int32)
    if not np.array_equal(small, values):
        raise ValueError("a movement has offsets of 2^31 elements or more")
    return small


# ---- records <-> JSON, field by field -------------------------------------------------------------------------------


def _int(v: Any) -> int:
    if type(v) is not int or abs(v) >= 2**63:
        raise ValueError(f"{_short(v)} is no integer")
    return v


def _bool(v: Any) -> bool:
    if type(v) is not bool:
        raise ValueError(f"{_short(v)} is neither true nor false")
    return v


def _str(v: Any) -> str:
    if not isinstance(v, str):
        raise ValueError(f"{_short(v)} is no text")
    return v


def _list(item: Callable[[Any], T]) -> Callable[[Any], tuple[T, ...]]:
    def read(v: Any) -> tuple[T, ...]:
        if not isinstance(v, list):
            raise ValueError(f"{_short(v)} is no list")
        return tuple(item(x) for x in v)

    return read


def _bounded(v: Any) -> str:
    """The text of axes or a per-core integer, refused where its run lengths would expand to more than any mesh has."""
    text = _str(v)
    runs = sum(int(n) for n in re.findall(r"\*\s*(\d{1,18})", text))
    if runs > MAX_CORES or re.search(r"\d{19}|-\d{4}.*:", text):
        raise ValueError(f"{_short(text)} is out of bounds")
    return text


def _layout(v: Any) -> Layout:
    text = _str(v)
    if re.search(r"-\d{4}", text):
        raise ValueError(f"{_short(text)} is out of bounds")
    return Layout.parse(text)


def _triple(v: Any) -> tuple[str, str, int]:
    if not isinstance(v, list) or len(v) != 3:
        raise ValueError(f"{_short(v)} is no destination")
    return _str(v[0]), _str(v[1]), _int(v[2])


def _range(v: Any) -> tuple[str, int, int]:
    if not isinstance(v, list) or len(v) != 3:
        raise ValueError(f"{_short(v)} is no range of cores")
    return _str(v[0]), _int(v[1]), _int(v[2])


def _count(v: Any) -> tuple[int, str]:
    if not isinstance(v, list) or len(v) != 2:
        raise ValueError(f"{_short(v)} is no counted dim")
    return _int(v[0]), _str(v[1])


def _short(v: Any) -> str:
    text = repr(v)
    return text if len(text) < 60 else text[:57] + "..."


_CODECS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "int": (int, _int),
    "bool": (bool, _bool),
    "str": (str, _str),
    "float": (lambda v: float(v).hex(), lambda v: float.fromhex(_str(v))),
    "CoreInt": (str, lambda v: CoreInt.parse(_bounded(v))),
    "Layout": (str, _layout),
    "tuple[int, ...]": (lambda v: [int(x) for x in v], _list(_int)),
    "tuple[str, ...]": (list, _list(_str)),
    "tuple[CoreInt, ...]": (lambda v: [str(x) for x in v], _list(lambda v: CoreInt.parse(_bounded(v)))),
    "tuple[To, ...]": (lambda v: [[t.axis, t.mode, t.value] for t in v], _list(lambda v: To(*_triple(v)))),
    "Counts": (lambda v: [list(c) for c in v], _list(lambda v: _count(v))),
    "tuple[Command, ...]": (lambda v: [], lambda v: ()),  # `_commands` and `_thread` see to bodies
}
"""Per field type, as the dataclass writes it: to JSON, and from JSON (ValueError)."""


def _encode(record: Any) -> dict[str, Any]:
    return {f.name: _CODECS[str(f.type)][0](getattr(record, f.name)) for f in dataclasses.fields(record)}


def _commands(commands: tuple[Command, ...]) -> list[dict[str, Any]]:
    out = []
    for c in commands:
        if isinstance(c, Loop):
            rest = {k: v for k, v in _encode(dataclasses.replace(c, body=())).items() if k != "body"}
            out.append({"do": "Loop", **rest, "body": _commands(c.body)})
        else:
            out.append({"do": type(c).__name__, **_encode(c)})
    return out


def _decode(where: str, what: str, kind: type[T], data: Any) -> T:
    fields = {f.name: str(f.type) for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if not isinstance(data, dict) or set(data) != set(fields):
        given = sorted(data) if isinstance(data, dict) else type(data).__name__
        _bad(where, f"{what}: {kind.__name__} needs exactly {', '.join(fields)}, not {_short(given)}")
    values = {}
    for name, type_ in fields.items():
        try:
            values[name] = _CODECS[type_][1](data[name])
        except (ValueError, OverflowError) as e:  # LayoutError is a ValueError
            _bad(where, f"{what}: {kind.__name__}.{name}: {e}")
    return kind(**values)


def _rows(where: str, what: str, data: Any) -> enumerate[Any]:
    if not isinstance(data, list):
        _bad(where, f"{what}: not a list")
    return enumerate(data)


def _object(where: str, what: str, data: Any) -> Mapping[str, Any]:
    if not isinstance(data, dict):
        _bad(where, f"{what}: not an object")
    return data


def _mesh(where: str, data: Any) -> Mesh:
    axes: list[tuple[str, int]] = []
    cores = 1
    for i, row in _rows(where, "mesh", data):
        good = isinstance(row, list) and len(row) == 2 and isinstance(row[0], str) and type(row[1]) is int
        if not good or row[1] < 1:
            _bad(where, f"mesh: factor {i} is {_short(row)}, expected [name, size]")
        if not re.fullmatch(r"[a-z]+(\.\d{1,3})?", row[0]) or row[0] in {n for n, _ in axes}:
            _bad(where, f"mesh: factor name {_short(row[0])} is malformed or occurs twice")
        cores *= row[1]
        if cores > MAX_CORES:
            _bad(where, f"mesh: more than {MAX_CORES:,} cores")
        axes.append((row[0], row[1]))
    return Mesh(tuple(axes))


def _kernels(where: str, names: Any, data: bytes) -> tuple[tuple[str, Nest], ...]:
    out: list[tuple[str, Nest]] = []
    at = 0
    for i, name in _rows(where, "kernels", names):
        if not isinstance(name, str):
            _bad(where, f"kernel {i}: name {_short(name)} is no text")
        try:
            nest, at = decode(data, at)
        except EncodingError as e:
            _bad(where, f"kernel {i} ({name[:60]}): {e}")
        out.append((name, nest))
    if at != len(data):
        _bad(where, f"blobs/kernels: {len(data) - at} bytes after the last of {len(out)} kernels")
    return tuple(out)


def _exchanges(where: str, mesh: Mesh, data: Any, arrays: Mapping[str, np.ndarray]) -> tuple[Exchange, ...]:
    out: list[list[ComponentExchange]] = []
    exchanges: list[Exchange] = []
    used: set[str] = set()
    for n, row in _rows(where, "exchanges", data):
        what = f"exchange {n}"
        keys = {"components", "source_held", "target_held", "plan_axes", "cut"}
        if not isinstance(row, dict) or set(row) != keys or not isinstance(row["components"], list):
            _bad(where, f"{what}: needs exactly {', '.join(sorted(keys))}")
        components: list[ComponentExchange] = []
        for k, c in enumerate(row["components"]):
            if isinstance(c, dict) and set(c) == {"like"}:
                components.append(_like(where, what, [*out, components], c["like"]))
                continue
            if not isinstance(c, dict) or set(c) != {"target_axes", "source_axes", "window", "owned"}:
                _bad(where, f"{what}: component {k} needs exactly target_axes, source_axes, window, owned")
            found = {}
            for name in (*_PIECES, "real", "extent"):
                array = arrays.get(f"exchange{n}.{k}.{name}")
                if array is None or array.dtype != np.int32 or array.ndim != 1:
                    _bad(where, f"{what}: program.safetensors lacks exchange{n}.{k}.{name} of type I32 and rank 1")
                used.add(f"exchange{n}.{k}.{name}")
                found[name] = array.astype(np.int64)  # offsets are multiplied: in 64 bits
            real, length = found.pop("real"), found.pop("extent")
            names = _names(where, what, c["target_axes"]), _names(where, what, c["source_axes"])
            sizes = _size(where, what, c["window"]), _size(where, what, c["owned"])
            components.append(ComponentExchange(*names, *sizes, Pieces(**found), real, length))
        held = _names(where, what, row["source_held"]), _names(where, what, row["target_held"])
        plan_axes, cut = _names(where, what, row["plan_axes"]), _cut(where, what, row["cut"])
        exchanges.append(Exchange(mesh, tuple(components), *held, plan_axes, cut))
        out.append(components)
    if set(arrays) - used:
        _bad(where, f"program.safetensors: unknown tensor {_short(min(set(arrays) - used))}")
    return tuple(exchanges)


def _like(where: str, what: str, known: list[list[ComponentExchange]], data: Any) -> ComponentExchange:
    """The component to which another is equal: of an exchange (or this one) that has been read."""
    if isinstance(data, list) and len(data) == 2:
        n, k = (_size(where, what, v) for v in data)
        if n < len(known) and k < len(known[n]):
            return known[n][k]
    _bad(where, f"{what}: a component like {_short(data)}, which does not come before it")


def _cut(where: str, what: str, data: Any) -> Cut | None:
    if data == []:
        return None
    if not isinstance(data, list) or len(data) != 4:
        _bad(where, f"{what}: a cut has two ranges, not {_short(data)}")
    a, b, c, d = (_size(where, what, v) for v in data)
    return Cut((a, b), (c, d))


def _names(where: str, what: str, data: Any) -> tuple[str, ...]:
    try:
        return _list(_str)(data)
    except ValueError as e:
        _bad(where, f"{what}: factors: {e}")


def _size(where: str, what: str, data: Any) -> int:
    if type(data) is not int or not 0 <= data < 2**31:
        _bad(where, f"{what}: extent {_short(data)}")
    return data


def _role(where: str, number: int, data: Any) -> Role:
    what = f"role {number}"
    if not isinstance(data, dict) or set(data) != {"name", "cores", "threads"} or not isinstance(data["threads"], list):
        _bad(where, f"{what}: needs exactly name, cores, threads")
    try:
        name, cores = _str(data["name"]), _list(_range)(data["cores"])
    except ValueError as e:
        _bad(where, f"{what}: {e}")
    threads = [
        _thread(where, f"{what} thread {t}", f"role {name[:60]!r} thread {t} command ", commands, 0)
        for t, commands in enumerate(data["threads"])
    ]
    return Role(name, cores, tuple(threads))


def _thread(where: str, what: str, at: str, data: Any, depth: int) -> tuple[Command, ...]:
    """Commands of a thread or of a loop's body; `at`: the text before a command's number."""
    if depth > MAX_DEPTH:
        _bad(where, f"{what}: loops nest deeper than {MAX_DEPTH}")
    done: list[Command] = []
    for i, c in _rows(where, what, data):
        here = f"{at}{i}"
        kind = COMMANDS.get(c.get("do", "")) if isinstance(c, dict) and isinstance(c.get("do"), str) else None
        if kind is None:
            _bad(where, f"{here}: unknown command {_short(c)}")
        fields = {k: v for k, v in c.items() if k != "do"}
        if kind is Loop and "body" in fields:
            body = _thread(where, f"{here} (Loop)", f"{here}.", fields["body"], depth + 1)
            loop = _decode(where, here, Loop, {**fields, "body": []})
            done.append(dataclasses.replace(loop, body=body))
        else:
            done.append(_decode(where, here, kind, fields))
    return tuple(done)
