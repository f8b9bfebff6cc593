"""The .d1x container: other readers agree with ours, and damage of any kind is a LoadError."""

import json
import os
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from d1c.errors import LoadError, UsageError
from d1c.target import binary

RNG = np.random.default_rng(7)
MANIFEST = {"name": "n", "outputs": [{"name": "y", "shape": [2, 3]}], "pi": 3.5}
ARRAYS = {
    "table": np.arange(10, dtype=np.uint16).reshape(2, 5),
    "count": np.array(7, np.int64),
    "none": np.zeros((0, 4), "u1"),
}
WEIGHTS = {
    "conv1": {"w": RNG.random((3, 5)).astype(ml_dtypes.bfloat16), "w2": RNG.random(700).astype(np.float32)},
    "fc": {"mask": np.array([True, False, True]), "layer/0.b": RNG.integers(-9, 9, 33).astype(np.int8)},
}
BLOBS = {"kernels": bytes(range(256)), "roles": b""}


def sample(path: Path) -> Path:
    binary.write(path, MANIFEST, ARRAYS, WEIGHTS, BLOBS)
    return path


def same(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> bool:
    return set(got) == set(want) and all(
        got[k].dtype == want[k].dtype and got[k].shape == want[k].shape and got[k].tobytes() == want[k].tobytes()
        for k in want
    )


def is_sample(c: binary.Container) -> bool:
    weights = set(c.weights) == set(WEIGHTS) and all(same(c.weights[g], WEIGHTS[g]) for g in WEIGHTS)
    return c.manifest == MANIFEST and c.blobs == BLOBS and same(c.arrays, ARRAYS) and weights


def test_round_trip_in_every_type(tmp_path: Path) -> None:
    assert is_sample(binary.read(sample(tmp_path / "a.d1x")))
    all_types = {str(t): np.ones((2, 3), t) for t in binary._ALLOWED}
    binary.write(tmp_path / "b.d1x", {}, all_types, {}, {})
    assert len(all_types) == 13 and same(binary.read(tmp_path / "b.d1x").arrays, all_types)


def test_other_readers_agree(tmp_path: Path) -> None:
    with zipfile.ZipFile(sample(tmp_path / "a.d1x")) as z:
        assert z.testzip() is None
        assert json.loads(z.read("manifest.json")) == {**MANIFEST, "d1x": 4}
        assert z.read("blobs/kernels") == BLOBS["kernels"]
        fc = load_tensors(z.read("weights/fc.safetensors"))
        assert same({k: v for k, v in fc.items() if not k.endswith("\0")}, WEIGHTS["fc"])


def test_tensors_stand_as_the_library_writes_them(tmp_path: Path) -> None:
    types = sorted(binary._ALLOWED, key=str)  # 64 elements leave no holes
    tensors = {
        f"{'zyé'[i % 3]}{t} {k}": RNG.integers(0, 2, (k, 64)).astype(t) for i, t in enumerate(types) for k in (1, 9)
    }
    binary.write(tmp_path / "a.d1x", {}, tensors, {}, {})
    with zipfile.ZipFile(tmp_path / "a.d1x") as z:
        assert z.read("program.safetensors") == save_tensors(tensors)


def test_same_content_same_bytes_and_alignment(tmp_path: Path) -> None:
    a = sample(tmp_path / "a.d1x").read_bytes()
    reverse: Callable[[dict[str, Any]], dict[str, Any]] = lambda d: dict(reversed(d.items()))  # noqa: E731
    binary.write(
        tmp_path / "b.d1x",
        reverse(MANIFEST),
        reverse(ARRAYS),
        {k: reverse(v) for k, v in reverse(WEIGHTS).items()},
        reverse(BLOBS),
    )
    assert (tmp_path / "b.d1x").read_bytes() == a
    c = binary.read(tmp_path / "b.d1x")
    for tensors in (c.arrays, *c.weights.values()):
        for array in tensors.values():
            assert array.ctypes.data % 64 == 0 or not array.size
            assert not array.flags.writeable
    assert c.weights["conv1"]["w2"].ctypes.data % 4096 == 0  # the largest type stands first: mmap base + page


def test_truncation_anywhere_is_a_load_error(tmp_path: Path) -> None:
    data = sample(tmp_path / "a.d1x").read_bytes()
    bad = tmp_path / "bad.d1x"
    for size in {*range(0, 60), *range(60, len(data), 97), *range(len(data) - 60, len(data))}:
        bad.write_bytes(data[:size])
        with pytest.raises(LoadError):
            binary.read(bad)


def test_a_flipped_byte_anywhere_is_a_load_error(tmp_path: Path) -> None:
    data = sample(tmp_path / "a.d1x").read_bytes()
    bad = tmp_path / "bad.d1x"
    draw = random.Random(3)
    places = (
        [draw.randrange(len(data)) for _ in range(400)] + list(range(len(data) - 300, len(data))) + list(range(120))
    )
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= 1 << draw.randrange(8)
        bad.write_bytes(damaged)
        with pytest.raises(LoadError):
            binary.read(bad)


def test_random_bytes_are_a_load_error(tmp_path: Path) -> None:
    draw = random.Random(4)
    bad = tmp_path / "bad.d1x"
    for _ in range(100):
        bad.write_bytes(draw.randbytes(draw.randrange(300)) + b"PK\5\6" + draw.randbytes(18))
        with pytest.raises(LoadError):
            binary.read(bad)


def forge(path: Path, entries: list[tuple[str, bytes]], align: bool = True) -> Path:
    """A zip with right CRCs, written by hand from docs/binary.md: the layers under the CRC are on their own."""
    out, central = b"", b""
    for name, data in entries:
        raw, extra = name.encode(), b""
        if name.endswith(".safetensors") and align:
            fill = -(len(out) + 30 + len(raw) + 6 + 8 + int.from_bytes(data[:8], "little")) % 4096
            extra = struct.pack("<HHH", 0xD935, 2 + fill, 4096) + bytes(fill)
        crc, at = zlib.crc32(data), len(out)
        middle = struct.pack("<HHHHHIII", 20, 0, 0, 0, 0x21, crc, len(data), len(data))
        out += b"PK\3\4" + middle + struct.pack("<HH", len(raw), len(extra)) + raw + extra + data
        central += (
            b"PK\1\2"
            + struct.pack("<H", 0x314)
            + middle
            + struct.pack("<HHHHHII", len(raw), 0, 0, 0, 0, 0o100644 << 16, at)
        )
        central += raw
    end = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, len(entries), len(entries), len(central), len(out), 0)
    path.write_bytes(out + central + end)
    return path


def tensors(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def row(dtype: Any = "U8", shape: Any = (64,), offsets: Any = (0, 64)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


GOOD = ("manifest.json", b'{"d1x":4}')
PROGRAM = ("program.safetensors", tensors({"t": row()}, bytes(range(64))))


def test_forged_file_without_a_fault_loads(tmp_path: Path) -> None:
    c = binary.read(forge(tmp_path / "a.d1x", [GOOD, PROGRAM, ("blobs/x", b"12")]))
    assert c.arrays["t"].tolist() == list(range(64)) and c.blobs == {"x": b"12"} and c.manifest == {}


def program(header: Any, data: bytes = b"") -> list[tuple[str, bytes]]:
    return [GOOD, ("program.safetensors", tensors(header, data))]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([GOOD], "program.safetensors is missing"),
        ([PROGRAM], "manifest.json is missing"),
        ([GOOD, GOOD, PROGRAM], "occurs twice"),
        ([GOOD, PROGRAM, ("weights/../x.safetensors", b"")], "unknown entry"),
        ([GOOD, PROGRAM, ("run.sh", b"")], "unknown entry"),
        ([("manifest.json", b'{"d1x":3}'), PROGRAM], "format version 3"),
        ([("manifest.json", b"{}"), PROGRAM], "format version None"),
        ([("manifest.json", b'{"d1x":4,"d1x":4}'), PROGRAM], "key occurs twice"),
        ([("manifest.json", b'{"d1x":NaN}'), PROGRAM], "NaN is not JSON"),
        ([("manifest.json", b"[1]"), PROGRAM], "not an object"),
        ([("manifest.json", b"\xff"), PROGRAM], "manifest.json: JSON"),
        ([("manifest.json", b'{"a":' + b"[" * 100_000), PROGRAM], "manifest.json: JSON"),
        ([("manifest.json", b'{"a":' + b"9" * 9000 + b"}"), PROGRAM], "manifest.json: JSON"),
        ([GOOD, ("program.safetensors", b"123")], "tensor header of 3 bytes"),
        ([GOOD, ("program.safetensors", b"\xff" * 16)], "tensor header of 18446744073709551615"),
        (program({"t": row("F8")}, bytes(64)), "unknown dtype 'F8'"),
        (program({"t": row(["F8"])}, bytes(64)), "unknown dtype"),
        (program({"t": row(shape=[65])}, bytes(64)), "needs another size"),
        (program({"t": row(shape=[2**70, 0], offsets=[0, 0])}), "shape"),
        (program({"t": row(shape=[2**62, 2**62])}, bytes(64)), "needs another size"),
        (program({"t": row(shape=[-64])}, bytes(64)), "shape is not a list"),
        (program({"t": row(shape=[1] * 40 + [64])}, bytes(64)), "shape is not a list"),
        (program({"t": row(shape=[True] * 6 + [64])}, bytes(64)), "shape is not a list"),
        (program({"t": row(offsets=[0, 128])}, bytes(64)), "outside the 64 bytes"),
        (program({"t": row(offsets=[64, 0])}, bytes(64)), "outside the 64 bytes"),
        (program({"t": row(offsets=[0])}, bytes(64)), "data_offsets"),
        (program({"t": 3}, bytes(64)), "needs exactly"),
        (program({"t": row(), "u": row()}, bytes(64)), "overlap or gap"),
        (program({"t": row(), "u": row(offsets=[128, 192])}, bytes(192)), "overlap or gap"),
        (program({"t": row(shape=[3], offsets=[0, 3]), "u": row(offsets=[3, 67])}, bytes(67)), "starts at 3"),
        (program({"t": row()}, bytes(65)), "cover 64 of 65"),
        (program({"t": row("BOOL")}, bytes([2] * 64)), "neither 0 nor 1"),
    ],
)
def test_faults_under_a_right_crc(tmp_path: Path, entries: list[tuple[str, bytes]], message: str) -> None:
    with pytest.raises(LoadError) as e:
        binary.read(forge(tmp_path / "bad.d1x", entries))
    assert message in e.value.message and e.value.where.endswith("bad.d1x") and e.value.remedy


def test_misaligned_and_compressed(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="not on a page"):
        binary.read(forge(tmp_path / "a.d1x", [GOOD, PROGRAM], align=False))
    with zipfile.ZipFile(tmp_path / "b.d1x", "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("manifest.json", b"{}" * 99)
    with pytest.raises(LoadError, match="compressed"):
        binary.read(tmp_path / "b.d1x")


def test_failed_write_leaves_nothing_and_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = sample(tmp_path / "a.d1x")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(binary, "_serialize", interrupt)
    with pytest.raises(KeyboardInterrupt):
        binary.write(path, {}, {}, {}, {})
    assert os.listdir(tmp_path) == ["a.d1x"] and is_sample(binary.read(path))


def test_refusals_of_write(tmp_path: Path) -> None:
    path = tmp_path / "a.d1x"
    for manifest, arrays, weights in (
        ({"d1x": 1}, {}, {}),
        ({"x": float("nan")}, {}, {}),
        ({}, {"a": np.zeros(2, np.complex64)}, {}),
        ({}, {"a\0": np.zeros(2)}, {}),
        ({}, {}, {"../x": {}}),
    ):
        with pytest.raises(ValueError):
            binary.write(path, manifest, arrays, weights, {})  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        binary.write(tmp_path / "no" / "a.d1x", {}, {}, {}, {})
    with pytest.raises(UsageError):
        binary.read(tmp_path / "none.d1x")
    with pytest.raises(UsageError):
        binary.read(tmp_path)
    assert os.listdir(tmp_path) == []
