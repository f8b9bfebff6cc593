"""DFT, STFT and MelWeightMatrix against numpy's transforms and ONNX's reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from d1c.errors import D1Error
from d1c.frontend.importer import import_onnx
from d1c.interp import evaluate

from .conftest import node_model, present

Feeds = dict[str, np.ndarray]


def signal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def run(model: onnx.ModelProto, feeds: Feeds, runtime: tuple[str, ...] = ("x",)) -> np.ndarray:
    """The result; feeds that are not read at run time are frozen."""
    fixed = {n: a for n, a in present(feeds).items() if n not in runtime}
    given = {n: feeds[n] for n in runtime}
    return evaluate(import_onnx(model, {n: a.shape for n, a in given.items()}, freeze=fixed), given)["y0"]


def planes(z: np.ndarray) -> np.ndarray:
    return np.stack([z.real, z.imag], -1).astype(np.float32)


def same(got: np.ndarray, wanted: np.ndarray) -> None:
    assert got.shape == wanted.shape and got.dtype == wanted.dtype
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-6 * max(1.0, float(np.abs(wanted).max())) * 2)


@pytest.mark.parametrize("length", [None, 1, 5, 9, 12, 20])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("inverse", [0, 1])
def test_dft(length: int | None, axis: int, parts: int, inverse: int) -> None:
    x = signal(3, 12, 4, parts)
    z = x[..., 0] + (1j * x[..., 1] if parts == 2 else 0)
    wanted = planes((np.fft.ifft if inverse else np.fft.fft)(z.astype(np.complex128), length, axis))
    feeds = {"x": x, **({"n": np.array(length)} if length else {})}
    same(run(node_model("DFT", feeds, 17, axis=axis, inverse=inverse), feeds), wanted)
    feeds = {"x": x, "n" if length else "_n": np.array(length or 0), "a": np.array(axis - 4)}
    same(run(node_model("DFT", feeds, 20, inverse=inverse), feeds), wanted)


@pytest.mark.parametrize("length", [None, 7, 10, 16])
def test_half_spectra(length: int | None) -> None:
    x = signal(2, 10, 1)
    feeds = {"x": x, **({"n": np.array(length)} if length else {})}
    half = np.fft.rfft(x[..., 0].astype(np.float64), length, 1)
    same(run(node_model("DFT", feeds, 20, onesided=1), feeds), planes(half))
    feeds["x"] = signal(2, 6, 2, seed=1)
    spectrum = feeds["x"][..., 0] + 1j * feeds["x"][..., 1].astype(np.complex128)
    wanted = np.fft.irfft(spectrum, length, 1)[..., None].astype(np.float32)
    same(run(node_model("DFT", feeds, 20, onesided=1, inverse=1), feeds), wanted)


@pytest.mark.parametrize("length", [1100, 1026, 1031, 2048])
def test_long_transforms(length: int) -> None:
    x = signal(1, 1000, 2)
    feeds = {"x": x, "n": np.array(length)}
    z = x[..., 0] + 1j * x[..., 1].astype(np.complex128)
    same(run(node_model("DFT", feeds, 20), feeds), planes(np.fft.fft(z, length, 1)))
    same(run(node_model("DFT", feeds, 20, inverse=1), feeds), planes(np.fft.ifft(z, length, 1)))
    real = {**feeds, "x": x[..., :1]}
    same(run(node_model("DFT", real, 20, onesided=1), real), planes(np.fft.rfft(z.real, length, 1)))
    half = {**feeds, "x": x[:, :400]}
    wanted = np.fft.irfft(z[:, :400], length, 1)[..., None].astype(np.float32)
    same(run(node_model("DFT", half, 20, onesided=1, inverse=1), half), wanted)


def test_a_long_transform_needs_no_square_matrix() -> None:
    feeds = {"x": signal(1, 4096, 1)}
    module = import_onnx(node_model("DFT", feeds, 20), {"x": (1, 4096, 1)})
    assert sum(c.size for c in module.constants.values()) < 64 * 4096


@pytest.mark.parametrize("onesided", [0, 1])
@pytest.mark.parametrize("samples, step, length", [(64, 8, 16), (50, 7, 13), (37, 5, 37), (41, 6, 9), (20, 1, 1)])
@pytest.mark.parametrize("window", ["none", "constant", "run time"])
def test_stft(samples: int, step: int, length: int, onesided: int, window: str) -> None:
    feeds = {"x": signal(2, samples, 1), "s": np.array(step)}
    feeds["_w" if window == "none" else "w"] = np.abs(signal(length, seed=1)) + 0.1
    feeds["n"] = np.array(length)
    model = node_model("STFT", feeds, 17, onesided=onesided)
    weights = np.ones(length) if window == "none" else feeds["w"].astype(np.float64)
    frames = np.lib.stride_tricks.sliding_window_view(feeds["x"][..., 0], length, 1)[:, ::step] * weights
    wanted = planes((np.fft.rfft if onesided else np.fft.fft)(frames, axis=-1))
    same(run(model, feeds, ("x", "w") if window == "run time" else ("x",)), wanted)


def test_stft_of_complex_signals_and_default_length() -> None:
    feeds = {"x": signal(1, 30, 2), "s": np.array(6), "w": np.abs(signal(12, seed=1))}
    z = feeds["x"][..., 0] + 1j * feeds["x"][..., 1].astype(np.complex128)
    frames = np.lib.stride_tricks.sliding_window_view(z, 12, 1)[:, ::6] * feeds["w"]
    same(run(node_model("STFT", feeds, 17, onesided=0), feeds), planes(np.fft.fft(frames, axis=-1)))


def test_mel_weights() -> None:
    values = (np.array(8), np.array(16), np.array(8192), np.array(0, np.float32), np.array(4096, np.float32))
    feeds = {n: v for n, v in zip("abcde", values, strict=True)}
    model = node_model("MelWeightMatrix", feeds, 17)
    outputs: Any = ReferenceEvaluator(model).run(None, feeds)
    same(run(model, feeds, ()), outputs[0])


def test_a_length_at_run_time_is_refused() -> None:
    feeds = {"x": signal(1, 8, 1), "n": np.array(8)}
    with pytest.raises(D1Error, match="run time"):
        run(node_model("DFT", feeds, 17), feeds, ("x", "n"))


def test_doubles_stay_doubles() -> None:
    x = np.random.default_rng(0).normal(size=(1, 24, 1))
    feeds = {"x": x}
    got = run(node_model("DFT", feeds, 17), feeds)
    z = np.fft.fft(x[..., 0], axis=1)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, np.stack([z.real, z.imag], -1), rtol=0, atol=1e-12)
