"""OpenCV's and TensorFlow's bilinear resizes, against those libraries' own numbers and against plain arithmetic."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any, Literal

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from vsa_rt.contracts import Resample, ResizeSpec
from vsa_rt.export.transforms import reference_transform
from vsa_rt.pipeline.reference import pillow_prepare
from vsa_rt.runtime.preprocess import Preprocessor
from vsa_rt.runtime.resample import ResizeRefused, resize
from vsa_rt.runtime.two_tap import TWO_TAP, resize_two_tap

Pixels = NDArray[np.uint8]
Kernel = Literal["opencv-bilinear", "tf-bilinear"]
KERNELS: tuple[Kernel, Kernel] = ("opencv-bilinear", "tf-bilinear")


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def cubes(height: int, width: int) -> Pixels:
    """An uneven image that needs no generator: byte ``n`` is ``41 n^3 mod 251``."""
    n = np.arange(height * width * 3, dtype=np.int64)
    return (n**3 * 41 % 251).astype(np.uint8).reshape(height, width, 3)


def warp(kernel: Kernel, height: int, width: int) -> ResizeSpec:
    return ResizeSpec(height=height, width=width, fit="warp", kernel=kernel)


def resized(image: Pixels, spec: ResizeSpec) -> Pixels:
    out = np.full((spec.height, spec.width, 3), 77, np.uint8)
    resize(image, [(spec, out)])
    return out


def by_reference(image: Pixels, spec: ResizeSpec) -> Pixels:
    return reference_transform(spec)(Image.fromarray(np.ascontiguousarray(image)))


# Source: cv2.resize(cubes(...), (width, height), interpolation=cv2.INTER_LINEAR), opencv-python-headless 5.0.0.93;
# 3.4.18.65, 4.5.5.64, 4.10.0.84 and 4.14.0.94 give the same. Rows of RGB triples.
OPENCV = [
    # Larger and smaller at once. The first and the last row lose a level to OpenCV's truncations in places.
    (
        (5, 4),
        [
            [17, 53, 82, 87, 60, 132, 28, 74, 113],
            [39, 111, 76, 100, 59, 145, 97, 77, 118],
            [65, 180, 79, 114, 62, 163, 176, 80, 124],
            [40, 122, 187, 81, 108, 172, 95, 58, 124],
            [33, 132, 176, 67, 105, 142, 100, 68, 101],
            [43, 208, 46, 72, 53, 73, 193, 110, 55],
            [119, 181, 66, 53, 136, 88, 170, 172, 142],
            [177, 153, 91, 38, 205, 104, 145, 218, 213],
        ],
    ),
    # Exactly half: OpenCV computes INTER_AREA here.
    ((4, 6), [[113, 83, 122, 39, 91, 181, 69, 86, 111], [95, 179, 89, 137, 102, 50, 141, 183, 115]]),
    (
        (9, 7),
        [
            [76, 80, 161, 64, 73, 124, 78, 130, 74],
            [117, 127, 72, 178, 160, 230, 97, 68, 123],
            [124, 135, 104, 72, 178, 42, 180, 128, 132],
            [150, 155, 175, 112, 181, 20, 161, 174, 175],
        ],
    ),
    ((1, 3), [[26, 59, 84, 79, 34, 145], [26, 59, 84, 79, 34, 145]]),
]


@pytest.mark.parametrize("by", [resized, by_reference], ids=["runtime", "reference"])
@pytest.mark.parametrize(("size", "rows"), OPENCV, ids=lambda value: str(value) if len(value) == 2 else "")
def test_opencvs_own_numbers(by: Any, size: tuple[int, int], rows: list[list[int]]) -> None:
    want = np.array(rows, np.uint8).reshape(len(rows), -1, 3)
    np.testing.assert_array_equal(by(cubes(*size), warp("opencv-bilinear", *want.shape[:2])), want)


@pytest.mark.parametrize("by", [resized, by_reference], ids=["runtime", "reference"])
@pytest.mark.parametrize("size", [(2, 2), (10, 6), (34, 50)])
def test_half_the_size_is_the_mean_of_four_in_opencv(by: Any, size: tuple[int, int]) -> None:
    image = noise(*size)
    four = image.reshape(size[0] // 2, 2, size[1] // 2, 2, 3).astype(int).sum((1, 3))
    spec = warp("opencv-bilinear", size[0] // 2, size[1] // 2)
    np.testing.assert_array_equal(by(image, spec), (four + 2) // 4)


# Source of the first: testResizeUp of tensorflow/python/ops/image_ops_test.py (ResizeMethod.BILINEAR), its 61.5
# rounded. The others by hand: positions are 0, 4/3, 8/3; 0, 2.5; and multiples of a half, whose ties go to even.
TENSORFLOW = [
    (
        [[64, 32], [32, 64], [50, 100]],
        [
            [64, 48, 32, 32],
            [48, 48, 48, 48],
            [32, 48, 64, 64],
            [41, 62, 82, 82],
            [50, 75, 100, 100],
            [50, 75, 100, 100],
        ],
    ),
    ([[0, 10, 20, 30]], [[0, 13, 27]]),
    ([[9, 1, 100, 203, 7]], [[9, 152]]),
    ([[0, 1, 2, 5]], [[0, 0, 1, 2, 2, 4, 5, 5]]),
]


@pytest.mark.parametrize("by", [resized, by_reference], ids=["runtime", "reference"])
@pytest.mark.parametrize(("grey", "want"), TENSORFLOW, ids=["published", "4 to 3", "5 to 2", "ties"])
def test_tensorflows_own_numbers(by: Any, grey: list[list[int]], want: list[list[int]]) -> None:
    image = np.repeat(np.array(grey, np.uint8)[..., None], 3, axis=2)
    got = by(image, warp("tf-bilinear", len(want), len(want[0])))
    np.testing.assert_array_equal(got, np.repeat(np.array(want)[..., None], 3, axis=2))


@st.composite
def specs(draw: st.DrawFn) -> ResizeSpec:
    kernel = draw(st.sampled_from(KERNELS))
    height, width = draw(st.integers(1, 120)), draw(st.integers(1, 120))
    if draw(st.booleans()):
        return warp(kernel, height, width)
    scale = max(height, width) + draw(st.integers(0, 40))
    return ResizeSpec(height=height, width=width, fit="shortest", kernel=kernel, scale=scale)


@st.composite
def images(draw: st.DrawFn) -> Pixels:
    """Images of every size, dense or four bytes a pixel, with padded rows, noisy or black and white."""
    edge = st.one_of(st.integers(1, 12), st.integers(1, 500))
    height, width, step = draw(edge), draw(edge), draw(st.sampled_from((3, 4)))
    row = width * step + draw(st.integers(0, 9))
    values = np.random.default_rng(draw(st.integers(0, 2**32))).integers(0, 256, height * row, dtype=np.uint8)
    if draw(st.booleans()):
        values = np.where(values > 127, 255, 0).astype(np.uint8)
    return np.ndarray((height, width, 3), np.uint8, buffer=values, strides=(row, step, 1))


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.too_slow])
@given(image=images(), spec=specs())
def test_the_runtime_gives_the_references_bytes(image: Pixels, spec: ResizeSpec) -> None:
    np.testing.assert_array_equal(resized(image, spec), by_reference(image, spec))


def taps_in_double(in_size: int, out_size: int, centre: float) -> tuple[Any, Any, Any]:
    position = ((np.arange(out_size) + centre) * in_size / out_size - centre).clip(0, in_size - 1)
    first = np.floor(position).astype(int)
    return first, np.minimum(first + 1, in_size - 1), position - first


# TensorFlow: half a level from rounding, and positions in float32 are off by 1e-4 of a pixel at most.
# OpenCV: each weight is off by up to 1/4096, and truncations take up to half a level before the last rounding.
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(image=images(), height=st.integers(1, 120), width=st.integers(1, 120))
@pytest.mark.parametrize(
    ("kernel", "centre", "within"), [("opencv-bilinear", 0.5, 1.25), ("tf-bilinear", 0, 0.55)]
)
def test_both_are_bilinear_interpolation(
    kernel: Kernel, centre: float, within: float, image: Pixels, height: int, width: int
) -> None:
    top, bottom, down = taps_in_double(image.shape[0], height, centre)
    left, right, across = taps_in_double(image.shape[1], width, centre)
    lines = image[:, left] * (1 - across)[:, None] + image[:, right] * across[:, None]
    exact = lines[top] * (1 - down)[:, None, None] + lines[bottom] * down[:, None, None]
    assert np.abs(resized(image, warp(kernel, height, width)) - exact).max() <= within


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.too_slow])
@given(image=images(), height=st.integers(1, 260), width=st.integers(1, 260))
def test_opencv_itself_where_it_is_installed(image: Pixels, height: int, width: int) -> None:
    cv2 = pytest.importorskip("cv2", reason="opencv-python-headless is not installed")
    want = cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(resized(image, warp("opencv-bilinear", height, width)), want)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_crop_is_the_middle_of_the_whole(kernel: Kernel) -> None:
    image = noise(150, 201)
    spec = ResizeSpec(height=44, width=50, fit="shortest", kernel=kernel, scale=64)
    height, width = spec.resized(150, 201)
    top, left = spec.crop_offset(height, width)
    whole = resized(image, warp(kernel, height, width))
    assert (height, width) == (64, 85)
    np.testing.assert_array_equal(resized(image, spec), whole[top : top + 44, left : left + 50])


@pytest.mark.parametrize("by", [resized, by_reference], ids=["runtime", "reference"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_same_size_gives_the_same_bytes(by: Any, kernel: Kernel) -> None:
    image = noise(31, 40)
    np.testing.assert_array_equal(by(image, warp(kernel, 31, 40)), image)
    out = np.empty_like(image)
    resize_two_tap(image, warp(kernel, 31, 40), out)
    np.testing.assert_array_equal(out, image)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", [(1, 1), (1, 3), (20000, 1), (1, 20000), (2500, 3700)])
def test_unusual_sizes(kernel: Kernel, size: tuple[int, int]) -> None:
    image = noise(*size)
    for spec in (warp(kernel, 24, 32), warp(kernel, 1, 1), warp(kernel, size[0], 9)):
        np.testing.assert_array_equal(resized(image, spec), by_reference(image, spec), err_msg=str(spec))


def test_a_column_stretched_so_far_that_weights_do_not_add_up() -> None:
    """OpenCV's two weights then make 2047 or 2049 of 2048 at places, were the fraction not dropped at edges."""
    image, spec = noise(40, 1, seed=29999), warp("opencv-bilinear", 53, 29999)
    got = resized(image, spec)
    np.testing.assert_array_equal(got, by_reference(image, spec))
    # One column has nothing to interpolate across.
    np.testing.assert_array_equal(got, np.repeat(got[:, :1], 29999, axis=1))


@pytest.mark.parametrize("kernel", KERNELS)
def test_views_of_any_stride(kernel: Kernel) -> None:
    spec = ResizeSpec(height=20, width=20, fit="shortest", kernel=kernel, scale=24)
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
        before = view.copy()
        np.testing.assert_array_equal(resized(view, spec), by_reference(view, spec), err_msg=name)
        np.testing.assert_array_equal(view, before, err_msg=name)


def test_one_call_fills_inputs_of_every_kernel() -> None:
    image = noise(90, 70)
    kernels: list[Any] = ["tf-bilinear", "bicubic", "opencv-bilinear", "bilinear"]
    wanted = [ResizeSpec(height=25, width=31, fit="warp", kernel=kernel) for kernel in kernels]
    outs = [np.zeros((25, 31, 3), np.uint8) for _ in wanted]
    resize(image, list(zip(wanted, outs, strict=True)))
    for spec, out in zip(wanted, outs, strict=True):
        np.testing.assert_array_equal(out, by_reference(image, spec), err_msg=spec.kernel)
    assert len({out.tobytes() for out in outs}) == 4


@pytest.mark.parametrize("kernel", KERNELS)
def test_too_elongated_images_are_refused(kernel: Kernel) -> None:
    spec = ResizeSpec(height=224, width=224, fit="shortest", kernel=kernel, scale=256)
    with pytest.raises(ResizeRefused, match="too elongated"):
        resized(noise(20000, 1), spec)


# A photograph decoded at a fraction is antialiased, which these kernels are not; its pixels are also means around
# their centres, while TensorFlow reads corners. On photographs that made up to 190 levels.
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_fast_resample_leaves_them_exact(kernel: Kernel) -> None:
    file = io.BytesIO()
    Image.fromarray(noise(400, 520)).save(file, "JPEG", quality=92)
    antialiased = ResizeSpec(height=56, width=56, fit="warp", kernel="bilinear")
    spec = ResizeSpec(height=56, width=56, fit="shortest", kernel=kernel, scale=64)
    for specs in ({"a": spec}, {"a": spec, "b": antialiased}):
        got = {mode: {n: np.zeros((56, 56, 3), np.uint8) for n in specs} for mode in Resample}
        for mode, out in got.items():
            Preprocessor(specs, mode).write(file.getvalue(), out, item="x")
        for name in specs:
            np.testing.assert_array_equal(got[Resample.FAST][name], got[Resample.EXACT][name])
    alone = {mode: np.zeros((56, 56, 3), np.uint8) for mode in Resample}
    for mode, pixels in alone.items():
        Preprocessor({"b": antialiased}, mode).write(file.getvalue(), {"b": pixels}, item="x")
    assert (alone[Resample.FAST] != alone[Resample.EXACT]).any()


def test_the_reference_prepares_every_kernel() -> None:
    image = noise(45, 60)
    kernels: list[Any] = ["bicubic", "bilinear", *KERNELS]
    wanted = {
        kernel: ResizeSpec(height=20, width=24, fit="shortest", kernel=kernel, scale=30) for kernel in kernels
    }
    got = pillow_prepare(wanted)(Image.fromarray(image))
    assert list(got) == kernels
    for name, spec in wanted.items():
        np.testing.assert_array_equal(got[name], resized(image, spec), err_msg=name)


def test_the_reference_needs_neither_torch_nor_opencv() -> None:
    code = (
        "import sys, vsa_rt.pipeline.reference, vsa_rt.export.transforms\n"
        "print(*{'torch', 'timm', 'cv2'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_specs_name_the_kernels_and_no_others() -> None:
    assert set(KERNELS) == TWO_TAP
    for kernel in KERNELS:
        spec = warp(kernel, 3, 4)
        assert msgspec.json.decode(msgspec.json.encode(spec), type=ResizeSpec) == spec
    with pytest.raises(msgspec.ValidationError, match="torch-bilinear"):
        msgspec.convert({"height": 3, "width": 4, "fit": "warp", "kernel": "torch-bilinear"}, ResizeSpec)
