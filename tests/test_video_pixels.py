"""Pixels of videos: upright, square, progressive, and of the right colours."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vsa_rt.errors import ItemError
from vsa_rt.runtime.video import video
from vsa_rt.runtime.video_colour import _matrix, to_bt709
from vsa_rt.runtime.video_pixels import square, turned

pytest.importorskip("av", reason="PyAV is not installed")

from clips import card, clip, grey, marked, number_of, numbered

#: ITU-R BT.709-6 colour bars of 100 %, greys, skin, sky and grass.
COLOURS = [
    (255, 255, 255), (255, 255, 0), (0, 255, 255), (0, 255, 0), (255, 0, 255), (255, 0, 0), (0, 0, 255), (0, 0, 0),
    (64, 64, 64), (128, 128, 128), (197, 149, 125), (120, 170, 220), (80, 140, 60),
]  # fmt: skip
#: AVColorSpace, AVColorRange, AVColorTransferCharacteristic and AVColorPrimaries, as ITU-T H.273 numbers them.
BT709, BT601, BT2020, LIMITED, FULL, PQ, HLG = 1, 6, 9, 1, 2, 16, 18


def pixels(source: Any) -> NDArray[np.uint8]:
    return next(iter(video(source, "all"))).pixels


def patches(source: Any, count: int) -> NDArray[np.int_]:
    """The colour in the middle of each patch of a test card."""
    picture = pixels(source).astype(int)
    size = picture.shape[1] // count
    return np.array([picture[size // 2, size // 2 + size * place] for place in range(count)])


def tags(space: int = 2, range: int = 0, transfer: int = 2, primaries: int = 2) -> dict[str, int]:
    return {"colorspace": space, "color_range": range, "color_trc": transfer, "color_primaries": primaries}


# Upright

CORNERS = np.zeros((48, 64, 3), np.uint8)
CORNERS[:24, :32], CORNERS[:24, 32:], CORNERS[24:, :32] = (250, 0, 0), (0, 250, 0), (0, 0, 250)


def corners(picture: NDArray[np.uint8]) -> str:
    """Names of the corners' colours, row by row: R, G, B or black."""
    height, width = picture.shape[:2]
    names = ""
    for row in (height // 4, 3 * height // 4):
        for column in (width // 4, 3 * width // 4):
            colour = picture[row, column]
            names += "RGB"[int(colour.argmax())] if colour.max() > 100 else "K"
    return names


@pytest.mark.parametrize(
    ("degrees", "mirrored", "expected"),
    [
        (0, False, "RGBK"), (90, False, "GKRB"), (180, False, "KBGR"), (-90, False, "BRKG"),
        (0, True, "GRKB"), (180, True, "BKRG"),
    ],
)  # fmt: skip
def test_rotated_videos_are_upright(tmp_path: Path, degrees: float, mirrored: bool, expected: str) -> None:
    path = clip(tmp_path / "turned.mp4", [CORNERS] * 2, turn=(degrees, mirrored))
    picture = pixels(path)
    assert corners(picture) == expected
    assert picture.shape == ((64, 48, 3) if degrees in (90, -90) else (48, 64, 3))


def test_every_display_matrix_of_right_angles_turns_as_it_is_defined() -> None:
    picture = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    for a, b, c, d in (
        (1, 0, 0, 1), (-1, 0, 0, 1), (1, 0, 0, -1), (-1, 0, 0, -1), (0, 1, 1, 0), (0, 1, -1, 0), (0, -1, 1, 0),
        (0, -1, -1, 0),
    ):  # fmt: skip
        places = {(a * x + c * y, b * x + d * y): picture[y, x] for y in range(2) for x in range(3)}
        left, top = min(x for x, _ in places), min(y for _, y in places)
        expected = np.zeros((2, 3, 3) if a else (3, 2, 3), np.uint8)
        for (x, y), colour in places.items():
            expected[y - top, x - left] = colour
        assert np.array_equal(turned(picture, (a * 65536, b * 65536, c * 65536, d * 65536)), expected)


# Square, of any size


@pytest.mark.parametrize(
    ("size", "aspect", "expected"),
    [((576, 720), Fraction(64, 45), (576, 1024)), ((480, 720), Fraction(8, 9), (540, 720))],
)
def test_pixels_become_square(
    tmp_path: Path, size: tuple[int, int], aspect: Fraction, expected: tuple[int, int]
) -> None:
    path = clip(tmp_path / "wide.mp4", [numbered(37, size)], aspect=aspect)
    picture = pixels(path)
    assert picture.shape == (*expected, 3)
    assert number_of(picture) == 37


def test_the_shorter_side_of_a_pixel_is_stretched() -> None:
    assert square(720, 576, Fraction(16, 15)) == (768, 576)
    assert square(720, 480, Fraction(8, 9)) == (720, 540)
    assert square(7, 5, None) == square(7, 5, Fraction(1)) == square(7, 5, Fraction(0)) == (7, 5)


@pytest.mark.parametrize("size", [(49, 65), (1, 1), (25, 101), (50, 67)])
def test_odd_sizes_stay_as_they_are(tmp_path: Path, size: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    exact = pixels(clip(tmp_path / "a.mkv", [picture], codec="ffv1", pix_fmt="bgr0"))
    assert np.array_equal(exact, picture)
    assert pixels(clip(tmp_path / "b.mkv", [picture], codec="ffv1", pix_fmt="yuv420p")).shape == (*size, 3)


def test_odd_sizes_keep_their_colours(tmp_path: Path) -> None:
    flat = np.full((49, 65, 3), (197, 149, 125), np.uint8)
    assert abs(pixels(clip(tmp_path / "a.mkv", [flat], codec="ffv1")).astype(int) - flat).max() <= 3


def test_a_size_that_changes_in_the_middle_changes(tmp_path: Path) -> None:
    small = clip(tmp_path / "a.h264", map(numbered, range(3)), form="h264").read_bytes()
    large = clip(tmp_path / "b.h264", (numbered(n, (96, 80)) for n in range(3, 6)), form="h264").read_bytes()
    for sample in ("all", "scenes"):
        frames = list(video(small + large, sample))
        shapes = [frame.pixels.shape[:2] for frame in frames]
        assert {shape: shapes.count(shape) for shape in shapes}.keys() == {(48, 64), (96, 80)}
    assert [number_of(frame.pixels) for frame in video(small + large, "all")] == list(range(6))


# Interlaced


def _moving(number: int) -> NDArray[np.uint8]:
    picture = np.full((48, 64, 3), 30, np.uint8)
    picture[:, (number * 3) % 56 :][:, :8] = 220
    return picture


def _interlaced(path: Path, count: int = 12) -> Path:
    import av

    frames = []
    for number in range(count):
        woven = _moving(2 * number)
        woven[1::2] = _moving(2 * number + 1)[1::2]
        frames.append(av.VideoFrame.from_ndarray(woven, "rgb24").reformat(format="yuv420p"))
    options = {"flags": "+ildct+ilme", "qscale": "1", "b": "20M"}
    return clip(path, marked(frames, "setfield=tff"), codec="mpeg2video", options=options)


def _comb(picture: NDArray[Any]) -> float:
    """How much neighbouring lines differ more than lines two apart: the teeth of woven fields."""
    lines = picture[:, :, 1].astype(float)
    return float(abs(lines[2:-2] - lines[1:-3]).mean() - abs(lines[2:-2] - lines[:-4]).mean())


@pytest.mark.parametrize("sample", ["all", "every=5", "keyframes"])
def test_interlaced_frames_show_one_moment(tmp_path: Path, sample: str) -> None:
    import av

    path = _interlaced(tmp_path / "interlaced.ts")
    with av.open(str(path)) as container:
        raw = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert all(_comb(picture) > 5 for picture in raw)  # it is interlaced
    frames = list(video(path, sample))
    assert len(frames) == {"all": 12, "every=5": 3}.get(sample, len(frames))
    for frame in frames:
        assert _comb(frame.pixels) < 1
        first_field = _moving(2 * round(frame.seconds * 25))
        assert abs(frame.pixels.astype(int) - first_field).mean() < 4


def test_progressive_frames_are_left_alone(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    path = clip(tmp_path / "a.mkv", [picture] * 3, codec="ffv1", pix_fmt="bgr0")
    assert all(np.array_equal(frame.pixels, picture) for frame in video(path, "all"))


# Colours


@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", ["bt601", "bt709", "bt2020"])
@pytest.mark.parametrize("deep", [False, True], ids=["8-bit", "10-bit"])
def test_a_test_card_keeps_its_colours(tmp_path: Path, matrix: str, full: bool, deep: bool) -> None:
    colours: Sequence[Sequence[float]] = (
        [[v / 255 for v in colour] for colour in COLOURS] if deep else COLOURS
    )
    frame, _ = card(colours, matrix=matrix, full=full, deep=deep)  # type: ignore[arg-type]
    space = {"bt601": BT601, "bt709": BT709, "bt2020": BT2020}[matrix]
    path = clip(tmp_path / "card.mkv", [frame], tags=tags(space, FULL if full else LIMITED, 1, 1))
    assert abs(patches(path, len(COLOURS)) - COLOURS).max() <= 3


def test_a_wrong_matrix_or_range_would_show(tmp_path: Path) -> None:
    """What the test above allows is far less than what a mistake makes."""
    frame, _ = card(COLOURS, matrix="bt601")
    for wrong in (tags(BT709, LIMITED), tags(BT601, FULL)):
        path = clip(tmp_path / "card.mkv", [frame], tags=wrong)
        assert abs(patches(path, len(COLOURS)) - COLOURS).max() > 15


@pytest.mark.parametrize(("matrix", "patch"), [("bt601", 32), ("bt709", 128)])
def test_without_a_stated_matrix_the_size_decides(tmp_path: Path, matrix: str, patch: int) -> None:
    frame, _ = card(COLOURS, matrix=matrix, size=patch)
    assert (frame.width >= 1280) is (matrix == "bt709")
    path = clip(tmp_path / "card.mkv", [frame])
    assert abs(patches(path, len(COLOURS)) - COLOURS).max() <= 3


def test_greyscale_has_three_equal_channels(tmp_path: Path) -> None:
    values = [0, 16, 80, 126, 200, 235, 255]
    path = clip(tmp_path / "grey.mkv", [grey(values)], codec="ffv1")
    assert patches(path, len(values)).tolist() == [[value] * 3 for value in values]


def test_limited_greyscale_is_stretched(tmp_path: Path) -> None:
    from vsa_rt.runtime.video_pixels import Converter

    frame = grey([0, 16, 126, 235, 255])
    frame.color_range = LIMITED

    class Stream:
        sample_aspect_ratio = None

    picture = Converter(Stream()).pixels(frame, None, None)  # type: ignore[arg-type]
    assert picture[16, 16::32, 0].tolist() == [0, 0, 128, 255, 255]


def test_alpha_is_dropped_not_blended(tmp_path: Path) -> None:
    import av

    colours = np.zeros((48, 64, 4), np.uint8)
    colours[..., :3] = (197, 149, 125)
    colours[:, 32:, 3] = 255
    frame = av.VideoFrame.from_ndarray(colours, "rgba")
    picture = pixels(clip(tmp_path / "alpha.mov", [frame], codec="png"))
    assert np.array_equal(picture, colours[..., :3])


@pytest.mark.parametrize("pix_fmt", ["yuv420p10le", "yuv422p10le", "yuv444p12le", "gbrp10le"])
def test_more_than_eight_bits_become_eight(tmp_path: Path, pix_fmt: str) -> None:
    flat = np.full((48, 64, 3), (197, 149, 125), np.uint8)
    path = clip(tmp_path / "deep.mkv", [flat], codec="ffv1", pix_fmt=pix_fmt)
    assert abs(pixels(path).astype(int) - flat).max() <= 2


# High dynamic range

#: Light of BT.709's primaries, in multiples of reference white, and the signal that BT.1886 shows it by.
LIGHTS = [
    (1, 1, 1),
    (0.2, 0.2, 0.2),
    (0.8, 0.05, 0.05),
    (0.05, 0.6, 0.05),
    (0.05, 0.05, 0.7),
    (0.6, 0.35, 0.25),
    (0, 0, 0),
]
SIGNALS = np.rint(255 * np.power(LIGHTS, 1 / 2.4))
#: ITU-R BT.2087-0, its matrix M2 from BT.709 to BT.2020.
TO_BT2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])


def _pq(light: NDArray[np.float64]) -> NDArray[np.float64]:
    """SMPTE ST 2084's inverse EOTF, of light in multiples of 203 cd/m²."""
    power = (np.maximum(light, 0) * 203 / 10_000) ** 0.1593017578125
    return np.asarray(((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375)


def _hlg(light: NDArray[np.float64]) -> NDArray[np.float64]:
    """BT.2100's inverse OOTF for 1,000 cd/m², then its OETF, of light in multiples of 203 cd/m²."""
    display = np.maximum(light, 0) * 0.203
    luminance = (display @ [0.2627, 0.6780, 0.0593])[:, None]
    scene = display * np.maximum(luminance, 1e-9) ** (1 / 1.2 - 1)
    return np.where(
        scene <= 1 / 12,
        np.sqrt(3 * scene),
        0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073,
    )


def _wide(path: Path, transfer: int, space: int = BT2020) -> Path:
    light = np.array(LIGHTS) @ TO_BT2020.T
    signal = {PQ: _pq, HLG: _hlg}.get(transfer, lambda values: values ** (1 / 2.4))(light)
    frame, _ = card(signal.tolist(), matrix="bt2020", deep=True)
    return clip(path, [frame], tags=tags(space, LIMITED, transfer, 9))


@pytest.mark.parametrize("transfer", [PQ, HLG, 14], ids=["PQ", "HLG", "BT.2020"])
def test_wide_colours_show_the_light_that_was_meant(tmp_path: Path, transfer: int) -> None:
    found = patches(_wide(tmp_path / "wide.mkv", transfer), len(LIGHTS))
    # Ten bits of PQ are coarse: a step of chroma is up to three levels of a dark channel beside a bright one.
    assert abs(found - SIGNALS).max() <= 8
    assert abs(found - SIGNALS).mean() <= 1.5


def test_taken_for_bt709_they_would_be_wrong(tmp_path: Path) -> None:
    frame, _ = card(_pq(np.array(LIGHTS) @ TO_BT2020.T).tolist(), matrix="bt2020", deep=True)
    path = clip(tmp_path / "untagged.mkv", [frame], tags=tags(BT2020, LIMITED, 1, 1))
    assert abs(patches(path, len(LIGHTS)) - SIGNALS).max() > 80


def test_without_a_stated_matrix_high_dynamic_range_means_bt2020(tmp_path: Path) -> None:
    found = patches(_wide(tmp_path / "wide.mkv", PQ, space=2), len(LIGHTS))
    assert abs(found - SIGNALS).max() <= 8


def test_what_is_brighter_than_white_is_white(tmp_path: Path) -> None:
    frame, _ = card(
        _pq(np.array([[1.0, 1, 1], [2, 2, 2], [20, 20, 20]])).tolist(), matrix="bt2020", deep=True
    )
    path = clip(tmp_path / "bright.mkv", [frame], tags=tags(BT2020, LIMITED, PQ, 9))
    assert patches(path, 3).min() >= 253


def test_the_conversion_is_ffmpegs_within_few_levels() -> None:
    """FFmpeg's scaler converts PQ and HLG, too, if it is asked to: relative colorimetric, as here."""
    import av
    from av.filter import Graph

    light = np.array(LIGHTS[:-1]) @ TO_BT2020.T
    for transfer, name, signal in ((PQ, "smpte2084", _pq(light)), (HLG, "arib-std-b67", _hlg(light))):
        codes = np.rint(signal * 65535).astype(np.uint16)[None].repeat(16, 0).repeat(16, 1)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(codes), "rgb48le")
        frame.color_trc, frame.color_primaries, frame.pts = transfer, 9, 0
        graph = Graph()
        size = f"{frame.width}x{frame.height}"
        scale = f"in_transfer={name}:in_primaries=bt2020:out_transfer=bt709:out_primaries=bt709"
        nodes = [
            graph.add("buffer", video_size=size, pix_fmt="rgb48le", time_base="1/25", pixel_aspect="1/1")
        ]
        try:
            nodes.append(graph.add("scale", scale))
        except av.error.FFmpegError:
            pytest.skip("this FFmpeg's scaler does not convert transfer characteristics")
        nodes += [graph.add("format", "rgb24"), graph.add("buffersink")]
        graph.link_nodes(*nodes).configure()
        graph.vpush(frame)
        theirs = graph.vpull().to_ndarray()[8, 8::16].astype(int)
        ours = to_bt709(codes, transfer, 9)[8, 8::16].astype(int)
        assert abs(ours - theirs).max() <= 6, name


def test_the_matrix_of_primaries_is_the_published_one() -> None:
    # ITU-R BT.2087-0 and BT.2407-0, annex 2, print it with four digits.
    expected = [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]]
    assert np.abs(_matrix(9) - expected).max() < 1e-4
    assert np.allclose(_matrix(9) @ TO_BT2020, np.eye(3), atol=2e-4)
    assert np.allclose(_matrix(1), np.eye(3), atol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (tags(8, LIMITED), "YCgCo"),
        (tags(10, LIMITED), "constant luminance"),
        (tags(14, LIMITED, PQ, 9), "ICtCp"),
        (tags(BT709, LIMITED, 8, 1), "linear"),
        (tags(BT709, LIMITED, 1, 10), "XYZ"),
    ],
)
def test_colours_that_are_not_converted_are_refused_by_name(
    tmp_path: Path, wrong: dict[str, int], words: str
) -> None:
    frame, _ = card(COLOURS, matrix="bt709")
    with pytest.raises(ItemError, match=words):
        pixels(clip(tmp_path / "card.mkv", [frame], tags=wrong))
