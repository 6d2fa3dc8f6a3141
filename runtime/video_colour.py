"""High dynamic range and wide gamut to the 8-bit colours of BT.709, which images and networks expect.

A display that shows the result as BT.1886 (BT.709's reference display) shows the light that the video asks for:

1. The signal becomes light, in multiples of reference white: PQ by ITU-R BT.2100-2 table 4 and HLG by table 5 on a
   display of 1,000 cd/m² (system gamma 1.2), both with reference white at 203 cd/m² (ITU-R BT.2408, table 1);
   a video of standard range by BT.1886, an exponent of 2.4.
2. Its primaries become BT.709's by the matrix that their chromaticities give.
3. What is brighter than reference white, or outside BT.709's gamut, is clipped, channel by channel: no tone mapping.
   FFmpeg's own conversion, "relative colorimetric", does the same.
4. Light becomes signal by BT.1886's inverse, an exponent of 1/2.4.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vsa_rt.runtime.pixels import Refused

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

# Code points of ITU-T H.273, tables 2 to 4.
_PQ, _HLG = 16, 18
_UNSPECIFIED = (0, 2)
_BT2020_TRANSFERS = (14, 15)
_BT2020, _DCI_P3, _DISPLAY_P3 = 9, 11, 12
_MATRICES = {1: "bt709", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020"}
_OTHER_MATRICES = {
    8: "YCgCo",
    10: "BT.2020 with constant luminance",
    11: "Y'D'zD'x",
    12: "one derived from the primaries",
    13: "one derived from the primaries, with constant luminance",
    14: "ICtCp",
    15: "IPT (Dolby Vision)",
    16: "YCgCo-R",
    17: "YCgCo-R",
}
_OTHER_TRANSFERS = {8: "linear", 9: "logarithmic", 10: "logarithmic", 17: "SMPTE ST 428"}

#: x and y of red, green, blue; the white of all three is D65 (0.3127, 0.3290). Files that say DCI-P3 are graded for D65,
#: too, if they are shown on anything but a projector.
_P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))  # SMPTE EG 432-1
_CHROMATICITIES = {
    1: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),  # ITU-R BT.709-6, item 1.3
    _BT2020: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),  # ITU-R BT.2020-2, table 3
    _DCI_P3: _P3,
    _DISPLAY_P3: _P3,
}
_LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)  # of BT.2020's primaries, its table 4
_D65 = (0.3127, 0.3290)

_REFERENCE_WHITE = 203.0
_HLG_PEAK = 1000.0
_HLG_GAMMA = 1.2
_DISPLAY_GAMMA = 2.4
#: Rows that are converted at a time: 8K in floats would be 400 MB a step.
_ROWS = 128


def matrix_of(frame: VideoFrame) -> str:
    """The matrix between Y'CbCr and R'G'B', as FFmpeg's scale filter calls it.

    Where a video does not say, what players assume holds: BT.2020 with BT.2020's primaries, PQ or HLG; otherwise BT.709
    from 1280 columns or 577 rows on, and BT.601 below.

    Raises:
        Refused: Colours are coded in a way that would come out wrong.
    """
    code = frame.colorspace
    if code in _OTHER_MATRICES and not frame.format.is_rgb:
        raise Refused(
            f"its colours are coded by a matrix that is not converted here: {_OTHER_MATRICES[code]}"
        )
    if code in _MATRICES:
        return _MATRICES[code]
    if _is_wide(frame):
        return "bt2020"
    return "bt709" if frame.width >= 1280 or frame.height > 576 else "bt601"


def conversion_of(frame: VideoFrame) -> tuple[int, int] | None:
    """What `to_bt709` has to know: transfer characteristics and primaries; none if the colours are BT.709's.

    The primaries of standard-definition systems differ little from BT.709's; as everywhere, they count as the same.

    Raises:
        Refused: The transfer characteristics are none that are converted here.
    """
    transfer, primaries = frame.color_trc, frame.color_primaries
    if transfer in _OTHER_TRANSFERS:
        raise Refused(f"its transfer characteristics are not converted here: {_OTHER_TRANSFERS[transfer]}")
    if primaries == 10:
        raise Refused("its colours are CIE XYZ, which are not converted here")
    if not _is_wide(frame) and primaries not in (_DCI_P3, _DISPLAY_P3):
        return None
    return transfer, _BT2020 if primaries in _UNSPECIFIED else primaries


def _is_wide(frame: VideoFrame) -> bool:
    transfer, primaries = frame.color_trc, frame.color_primaries
    return (
        transfer in (_PQ, _HLG)
        or primaries == _BT2020
        or (primaries in _UNSPECIFIED and transfer in _BT2020_TRANSFERS)
    )


def to_bt709(signal: NDArray[np.uint16], transfer: int, primaries: int) -> NDArray[np.uint8]:
    """Convert R'G'B' to BT.709.

    Args:
        signal: ``(H, W, 3)``, full range.
        transfer: Transfer characteristics, as H.273 numbers them.
        primaries: Colour primaries, as H.273 numbers them.

    Returns:
        ``(H, W, 3)``, to be shown as BT.1886.
    """
    light, matrix, code = _light(transfer), _matrix(primaries), _code()
    pixels = np.empty(signal.shape, np.uint8)
    for top in range(0, len(signal), _ROWS):
        rows = light[signal[top : top + _ROWS]]
        if transfer == _HLG:
            # The display's opto-optical transfer function works on luminance, BT.2100-2 table 5.
            luminance = rows @ _LUMINANCE
            rows *= np.power(luminance, _HLG_GAMMA - 1)[..., None] * np.float32(_HLG_PEAK / _REFERENCE_WHITE)
        rows = np.clip(rows @ matrix.T, 0, 1)
        # The table is over the square root of light: dark tones need the finer steps.
        pixels[top : top + _ROWS] = code[(np.sqrt(rows) * 65535 + 0.5).astype(np.uint16)]
    return pixels


@lru_cache(maxsize=4)
def _light(transfer: int) -> NDArray[np.float32]:
    """Light of every 16-bit signal: of reference white, or for HLG of the scene."""
    signal = np.arange(65536) / 65535
    if transfer == _PQ:
        m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
        power = signal ** (1 / m2)
        light = 10_000 / _REFERENCE_WHITE * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)
    elif transfer == _HLG:
        a = 0.17883277
        b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)
        light = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    else:
        light = signal**_DISPLAY_GAMMA
    return light.astype(np.float32)


@lru_cache(maxsize=1)
def _code() -> NDArray[np.uint8]:
    root = np.arange(65536) / 65535
    return np.rint(255 * root ** (2 / _DISPLAY_GAMMA)).astype(np.uint8)


@lru_cache(maxsize=4)
def _matrix(primaries: int) -> NDArray[np.float32]:
    """Light of these primaries to light of BT.709's ``(3, 3)``; those that are not in the table count as BT.709's."""
    own = _CHROMATICITIES.get(primaries, _CHROMATICITIES[1])
    product = np.linalg.inv(_to_xyz(_CHROMATICITIES[1])) @ _to_xyz(own)
    return np.asarray(product, np.float32)


def _to_xyz(chromaticities: tuple[tuple[float, float], ...]) -> NDArray[np.float64]:
    """R, G, B to X, Y, Z such that (1, 1, 1) is D65 with Y = 1 (SMPTE RP 177)."""
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in chromaticities]).T
    x, y = _D65
    return columns * np.linalg.solve(columns, np.array([x / y, 1, (1 - x - y) / y]))
