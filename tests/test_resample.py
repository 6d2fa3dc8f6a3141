from __future__ import annotations

import threading
from types import ModuleType
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from vsa_rt.contracts import ResizeSpec
from vsa_rt.runtime import resample

Pixels = NDArray[np.uint8]
Kernel = Literal["bicubic", "bilinear"]

QUICKSTART = [
    ResizeSpec(height=crop, width=crop, fit="shortest", kernel="bicubic", scale=scale)
    for crop, scale in ((224, 256), (240, 272), (260, 292))
]


@pytest.fixture(scope="session")
def native() -> ModuleType:
    module: ModuleType = pytest.importorskip("vsa_rt.runtime._resample", reason="built without a compiler")
    return module


@pytest.fixture(scope="session")
def vertical_first(native: ModuleType) -> Any:
    order = resample._pass_order()
    assert order is not None, "the kernel differs from the installed Pillow"
    return order


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def by_pillow(image: Pixels, spec: ResizeSpec) -> Pixels:
    """The reference: resize the whole image, then crop, with nothing of ours but the spec's own sizes."""
    height, width = spec.resized(*image.shape[:2])
    top, left = spec.crop_offset(height, width)
    method = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[spec.kernel]
    whole = Image.fromarray(np.ascontiguousarray(image)).resize((width, height), method)
    return np.asarray(whole.crop((left, top, left + spec.width, top + spec.height)))


def resized(image: Pixels, spec: ResizeSpec) -> Pixels:
    out = np.full((spec.height, spec.width, 3), 77, np.uint8)
    resample.resize(image, [(spec, out)])
    return out


@st.composite
def specs(draw: st.DrawFn) -> ResizeSpec:
    kernel: Kernel = draw(st.sampled_from(("bicubic", "bilinear")))
    height, width = draw(st.integers(1, 260)), draw(st.integers(1, 260))
    if draw(st.booleans()):
        return ResizeSpec(height=height, width=width, fit="warp", kernel=kernel)
    scale = max(height, width) + draw(st.integers(0, 40))
    return ResizeSpec(height=height, width=width, fit="shortest", kernel=kernel, scale=scale)


@st.composite
def images(draw: st.DrawFn) -> Pixels:
    """Images of every size, dense or four bytes a pixel, with padded rows, noisy or black and white."""
    edge = st.one_of(st.integers(1, 12), st.integers(1, 700))
    height, width = draw(edge), draw(edge)
    step = draw(st.sampled_from((3, 4)))
    row = width * step + draw(st.integers(0, 9))
    values = np.random.default_rng(draw(st.integers(0, 2**32))).integers(0, 256, height * row, dtype=np.uint8)
    if draw(st.booleans()):
        values = np.where(values > 127, 255, 0).astype(np.uint8)
    return np.ndarray((height, width, 3), np.uint8, buffer=values, strides=(row, step, 1))


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(image=images(), wanted=st.lists(specs(), min_size=1, max_size=3))
def test_native_kernels_give_pillows_bytes(
    native: ModuleType, vertical_first: Any, image: Pixels, wanted: list[ResizeSpec]
) -> None:
    wanted = [spec for spec in wanted if np.prod(spec.resized(*image.shape[:2])) < 2e6]
    expected = [by_pillow(image, spec) for spec in wanted]
    for kernel in native.kernels():
        outs = [np.full(pixels.shape, 77, np.uint8) for pixels in expected]
        resample._resize_native(image, list(zip(wanted, outs, strict=True)), vertical_first, kernel)
        for spec, out, pixels in zip(wanted, outs, expected, strict=True):
            np.testing.assert_array_equal(out, pixels, err_msg=f"{kernel}, {image.shape}, {spec}")


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    width=st.integers(1, 60),
    to_height=st.integers(1, 60),
    to_width=st.integers(1, 60),
    beyond=st.integers(-2, 3),
)
def test_order_of_passes_is_pillows_where_it_turns_round(
    vertical_first: Any, width: int, to_height: int, to_width: int, beyond: int
) -> None:
    height = max(1, to_height + 2 * (width - to_width) + beyond)
    image = noise(height, width, seed=beyond + 2)
    spec = ResizeSpec(height=to_height, width=to_width, fit="warp", kernel="bicubic")
    out = np.empty((to_height, to_width, 3), np.uint8)
    resample._resize_native(image, [(spec, out)], vertical_first)
    np.testing.assert_array_equal(out, by_pillow(image, spec))


@pytest.mark.parametrize("size", [(450, 600), (600, 450), (800, 600), (1080, 1920), (1920, 800), (97, 61)])
def test_the_quickstarts_inputs(size: tuple[int, int]) -> None:
    image = noise(*size)
    outs = [np.empty((spec.height, spec.width, 3), np.uint8) for spec in QUICKSTART]
    resample.resize(image, list(zip(QUICKSTART, outs, strict=True)))
    for spec, out in zip(QUICKSTART, outs, strict=True):
        np.testing.assert_array_equal(out, by_pillow(image, spec))


@pytest.mark.parametrize("path", ["native", "pillow"])
@pytest.mark.parametrize(
    ("size", "spec"),
    [
        ((1, 1), QUICKSTART[0]),
        ((1, 3), QUICKSTART[0]),
        ((20000, 1), ResizeSpec(height=24, width=32, fit="warp", kernel="bicubic")),
        ((1, 20000), ResizeSpec(height=24, width=32, fit="warp", kernel="bilinear")),
        ((2000, 2), ResizeSpec(height=8, width=8, fit="shortest", kernel="bicubic", scale=9)),
        ((224, 224), ResizeSpec(height=224, width=224, fit="warp", kernel="bicubic")),
        ((30, 41), ResizeSpec(height=20, width=22, fit="shortest", kernel="bicubic", scale=30)),
        ((30, 224), ResizeSpec(height=31, width=224, fit="warp", kernel="bicubic")),
        ((224, 30), ResizeSpec(height=224, width=31, fit="warp", kernel="bicubic")),
    ],
)
def test_unusual_sizes(
    monkeypatch: pytest.MonkeyPatch, path: str, size: tuple[int, int], spec: ResizeSpec
) -> None:
    if path == "pillow":
        monkeypatch.setattr(resample, "_pass_order", lambda: None)
    image = noise(*size)
    np.testing.assert_array_equal(resized(image, spec), by_pillow(image, spec))


@pytest.mark.parametrize("path", ["native", "pillow"])
def test_views_of_any_stride(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    if path == "pillow":
        monkeypatch.setattr(resample, "_pass_order", lambda: None)
    spec = ResizeSpec(height=20, width=20, fit="shortest", kernel="bicubic", scale=24)
    argb = np.random.default_rng(1).integers(0, 256, (50, 40, 4), dtype=np.uint8)
    rgb = noise(50, 40)
    views = {
        "upside down": rgb[::-1],
        "mirrored": rgb[:, ::-1],
        "BGR": rgb[..., ::-1],
        "transposed": rgb.transpose(1, 0, 2),
        "every other pixel": rgb[::2, ::2],
        "first three of four": argb[..., :3],
        "last three of four": argb[..., 1:],
        "a single column": rgb[:, 5:6],
        "read-only": np.frombuffer(rgb.tobytes(), np.uint8).reshape(rgb.shape),
        "planar": np.ascontiguousarray(rgb.transpose(2, 0, 1)).transpose(1, 2, 0),
    }
    for name, view in views.items():
        np.testing.assert_array_equal(resized(view, spec), by_pillow(view, spec), err_msg=name)


@pytest.mark.parametrize("step", [3, 4])
def test_reads_and_writes_stay_inside(native: ModuleType, vertical_first: Any, step: int) -> None:
    """What lies around an image must not matter, and what lies around an output must stay."""
    for height, width in ((37, 41), (90, 12)):
        for spec in (
            ResizeSpec(height=13, width=11, fit="warp", kernel="bicubic"),
            ResizeSpec(height=50, width=61, fit="warp", kernel="bicubic"),
        ):
            for kernel in native.kernels():
                results = []
                for around in (0, 255):
                    canvas = np.full((height + 2, width + 2, step), around, np.uint8)
                    canvas[1:-1, 1:-1, :3] = noise(height, width)
                    guarded = np.full(spec.height * spec.width * 3 + 128, 99, np.uint8)
                    out = guarded[64:-64].reshape(spec.height, spec.width, 3)
                    resample._resize_native(canvas[1:-1, 1:-1, :3], [(spec, out)], vertical_first, kernel)
                    assert (guarded[:64] == 99).all()
                    assert (guarded[-64:] == 99).all()
                    results.append(out)
                np.testing.assert_array_equal(results[0], results[1], err_msg=kernel)


@pytest.mark.parametrize("path", ["native", "pillow"])
@pytest.mark.parametrize("size", [(20000, 1), (1, 20000)])
def test_too_elongated_images_are_refused(
    monkeypatch: pytest.MonkeyPatch, path: str, size: tuple[int, int]
) -> None:
    if path == "pillow":
        monkeypatch.setattr(resample, "_pass_order", lambda: None)
    with pytest.raises(
        resample.ResizeRefused, match=r"too elongated: resized they would be .* more than 178,956"
    ):
        resized(noise(*size), QUICKSTART[0])


def test_longer_edges_than_the_kernel_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resample, "_NATIVE_EDGE", 100)
    image = noise(101, 30)
    np.testing.assert_array_equal(resized(image, QUICKSTART[0]), by_pillow(image, QUICKSTART[0]))


def test_more_targets_than_one_call_takes() -> None:
    image = noise(40, 50)
    spec = ResizeSpec(height=9, width=8, fit="warp", kernel="bilinear")
    outs = [np.empty((9, 8, 3), np.uint8) for _ in range(150)]
    resample.resize(image, [(spec, out) for out in outs])
    for out in outs:
        np.testing.assert_array_equal(out, by_pillow(image, spec))


@pytest.mark.parametrize(
    ("image", "out"),
    [
        (np.zeros((4, 4), np.uint8), np.zeros((8, 8, 3), np.uint8)),
        (np.zeros((4, 4, 4), np.uint8), np.zeros((8, 8, 3), np.uint8)),
        (np.zeros((4, 4, 3), np.float32), np.zeros((8, 8, 3), np.uint8)),
        (np.zeros((0, 4, 3), np.uint8), np.zeros((8, 8, 3), np.uint8)),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((8, 8, 3), np.int8)),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((8, 16, 3), np.uint8)[:, ::2]),
        (np.zeros((4, 4, 3), np.uint8), np.frombuffer(bytes(192), np.uint8).reshape(8, 8, 3)),
    ],
)
def test_wrong_arrays_are_refused(image: NDArray[Any], out: NDArray[Any]) -> None:
    spec = ResizeSpec(height=8, width=8, fit="warp", kernel="bicubic")
    with pytest.raises(ValueError, match="expected"):
        resample.resize(image, [(spec, out)])


def test_threads_share_the_kernel() -> None:
    image = noise(300, 400)
    expected = [by_pillow(image, spec) for spec in QUICKSTART]
    wrong: list[str] = []

    def work() -> None:
        for _ in range(5):
            outs = [np.zeros(pixels.shape, np.uint8) for pixels in expected]
            resample.resize(image, list(zip(QUICKSTART, outs, strict=True)))
            wrong.extend("x" for a, b in zip(outs, expected, strict=True) if not np.array_equal(a, b))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_kernel_that_differs_from_pillow_is_not_used(
    native: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resample.implementation() == "native"
    assert resample.instruction_set() == native.kernels()[0]
    monkeypatch.setattr(resample, "_whichever_saves", lambda *sizes: sizes[0] % 2 == 0)
    monkeypatch.setattr(resample, "_horizontal_always", lambda *sizes: True)
    order = resample._pass_order.__wrapped__()
    assert order is None
    monkeypatch.setattr(resample, "_pass_order", lambda: order)
    assert resample.implementation() == "pillow"
    assert resample.instruction_set() == ""


def test_the_kernel_refuses_what_is_not_a_plan(native: ModuleType) -> None:
    image = noise(10, 12)
    out = np.zeros((4, 5, 3), np.uint8)
    x, y = native.plan(12, 5, 0, 5, True), native.plan(10, 4, 0, 4, True)

    def run(x: object, y: object, kernel: str = "") -> None:
        native.resize(image.ctypes.data, 36, 3, 10, 12, ((x, y, out.ctypes.data, False),), kernel)

    run(x, y)
    for bad in (b"", x[:-1], y, x[:12] + b"\xff" * (len(x) - 12), x[:12] + b"\x7f" * (len(x) - 12)):
        with pytest.raises(ValueError, match="plan is damaged"):
            run(bad, y)
    with pytest.raises(TypeError):
        run("text", y)
    with pytest.raises(ValueError, match="no kernel"):
        run(x, y, "mmx")
    with pytest.raises(ValueError, match="outside"):
        native.plan(10, 4, 1, 4, True)
    with pytest.raises(ValueError, match="1 to 64 jobs"):
        native.resize(image.ctypes.data, 36, 3, 10, 12, ())
