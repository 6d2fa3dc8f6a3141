"""Measures what one photograph costs the host: decoding and resizing, way by way, on one thread.

Run as ``python -m vsa_rt.bench.experiments.host DIR [--json]``. The ways take turns on every file, so that other load on the
machine hits all of them alike; the time is the thread's own, the figure is the median over the files.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from vsa_rt.bench import clock
from vsa_rt.contracts import Resample, ResizeSpec
from vsa_rt.errors import ItemError
from vsa_rt.runtime import resample
from vsa_rt.runtime.decode import decode
from vsa_rt.runtime.jpeg import jpeg_decoder
from vsa_rt.runtime.preprocess import Preprocessor

#: The three inputs of the quickstart's EfficientNet-lite ensemble.
QUICKSTART = {
    name: ResizeSpec(height=crop, width=crop, fit="shortest", kernel="bicubic", scale=scale)
    for name, crop, scale in (("lite0", 224, 256), ("lite1", 240, 272), ("lite2", 260, 292))
}

_T = TypeVar("_T")


@dataclass
class HostReport:
    """What ``measure`` found.

    Attributes:
        files: Photographs measured.
        failed: Files that could not be decoded.
        jpeg_decoder: What ``decode`` uses for ordinary JPEG files.
        resize: What ``resize`` uses, with its instruction set.
        core_ms: Median of the thread's time per photograph, by way, in milliseconds.
        equal: Photographs whose bytes equal Pillow's, by way.
        fast_max_difference: Largest difference between the fast and the exact result, in levels of 255.
        fast_mean_difference: Mean difference, in levels of 255.
    """

    files: int = 0
    failed: int = 0
    jpeg_decoder: str = ""
    resize: str = ""
    core_ms: dict[str, float] = field(default_factory=dict)
    equal: dict[str, int] = field(default_factory=dict)
    fast_max_difference: int = 0
    fast_mean_difference: float = 0.0


def measure(paths: Sequence[Path], specs: dict[str, ResizeSpec] | None = None) -> HostReport:
    """Time decoding and resizing of photographs, and compare every way with Pillow's.

    Args:
        paths: Image files; each is read into memory before the clock starts.
        specs: Graph inputs to make; the quickstart's by default.

    Returns:
        Medians and counts of equal results; no medians if no file could be decoded.
    """
    specs = specs or QUICKSTART
    report = HostReport(
        jpeg_decoder=jpeg_decoder(),
        resize=" ".join(filter(None, (resample.implementation(), resample.instruction_set()))),
    )
    exact, fast = Preprocessor(specs), Preprocessor(specs, Resample.FAST)
    outs = [_buffers(specs) for _ in range(3)]
    targets = [[(specs[name], out[name]) for name in specs] for out in outs]
    samples: dict[str, list[float]] = {}
    mean_differences: list[float] = []

    def timed(way: str, call: Callable[[], _T]) -> _T:
        results: list[_T] = []
        samples.setdefault(way, []).append(clock.core_ms(lambda: results.append(call())))
        return results[0]

    for path in paths:
        data = path.read_bytes()
        try:
            # Also brings the file's code paths and the plans into the caches before the clock starts.
            exact.write(data, outs[0], item=path.name)
        except ItemError:
            report.failed += 1
            continue
        report.files += 1
        by_pillow = timed("decode, Pillow", partial(decode, data, item=path.name, decoder="pillow"))
        if report.jpeg_decoder == "opencv":
            by_opencv = timed("decode, OpenCV", partial(decode, data, item=path.name))
            _count(report, "decode, OpenCV", [np.array_equal(by_opencv, by_pillow)])
        dense = np.ascontiguousarray(by_pillow)
        timed("resize, Pillow", partial(resample.resize_with_pillow, dense, targets[1]))
        if report.resize != "pillow":
            timed("resize, native", partial(resample.resize, dense, targets[0]))
            _count(report, "resize, native", [np.array_equal(outs[0][name], outs[1][name]) for name in specs])
        timed("whole, exact", partial(exact.write, data, outs[0], item=path.name))
        timed("whole, fast", partial(fast.write, data, outs[2], item=path.name))
        _count(report, "whole, exact", [np.array_equal(outs[0][name], outs[1][name]) for name in specs])
        _count(report, "whole, fast", [np.array_equal(outs[2][name], outs[1][name]) for name in specs])
        for name in specs:
            difference = np.abs(outs[2][name].astype(np.int16) - outs[1][name])
            report.fast_max_difference = max(report.fast_max_difference, int(difference.max()))
            mean_differences.append(float(difference.mean()))

    report.core_ms = {way: median(values) for way, values in samples.items()}
    report.fast_mean_difference = float(np.mean(mean_differences)) if mean_differences else 0.0
    return report


def _buffers(specs: dict[str, ResizeSpec]) -> dict[str, NDArray[np.uint8]]:
    return {name: np.empty((spec.height, spec.width, 3), np.uint8) for name, spec in specs.items()}


def _count(report: HostReport, way: str, equal: list[bool]) -> None:
    report.equal[way] = report.equal.get(way, 0) + all(equal)


def _sample(folder: Path, count: int) -> list[Path]:
    """Regular files spread evenly over a folder's sorted listing."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return files if len(files) <= count else [files[i * len(files) // count] for i in range(count)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script.

    Args:
        arguments: The command line; ``sys.argv`` by default.

    Returns:
        0, or 2 if the folder holds no image.
    """
    parser = argparse.ArgumentParser(prog="python -m vsa_rt.bench.experiments.host", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="a folder of photographs")
    parser.add_argument("-n", "--count", type=int, default=100, help="how many of them (default: 100)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args(arguments)
    if not options.folder.is_dir():
        parser.error(f"{os.fspath(options.folder)!r} is not a folder")
    report = measure(_sample(options.folder, max(1, options.count)))
    if options.json:
        print(json.dumps(asdict(report), indent=2))
    else:
        table = Table(title=f"{report.files} photographs, one thread; {report.failed} could not be decoded")
        table.add_column("way")
        table.add_column("core-ms, median", justify="right")
        table.add_column("bytes equal to Pillow's", justify="right")
        for way, value in report.core_ms.items():
            equal = f"{report.equal[way]} of {report.files}" if way in report.equal else ""
            table.add_row(way, f"{value:.2f}", equal)
        console = Console()
        console.print(table)
        console.print(
            f"JPEG decoder: {report.jpeg_decoder}; resize: {report.resize}; fast differs by at most "
            f"{report.fast_max_difference} levels, {report.fast_mean_difference:.3f} in the mean"
        )
    return 0 if report.files else 2


if __name__ == "__main__":
    sys.exit(main())
