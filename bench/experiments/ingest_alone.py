"""What decoding, resizing and the engine take alone: core-seconds, each part with every core busy with it.

Cores that share a processor's units, caches or memory are slower together than alone, and ingestion has all of them
busy. So each core decodes, and then resizes, the same at the same time, each in a process of its own with one thread;
the mean is taken.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import astuple, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsa_rt.bench import clock
from vsa_rt.bench.experiments.ingest_command import Subject
from vsa_rt.bench.workload import from_photographs
from vsa_rt.bundle import Bundle
from vsa_rt.runtime.load import load
from vsa_rt.runtime.preprocess import Preprocessor
from vsa_rt.runtime.video import video

#: Frames of a video that are resized in turns; how long that takes depends on their size alone.
_FRAMES = 16
_RESIZED = 320
#: Windows of the engine, of which the cheapest counts, and how long each of them is.
_WINDOWS, _SECONDS = 3, 2.0
#: For all processes to have imported and opened what they need.
_READY_S = 120.0


@dataclass(frozen=True)
class Spent:
    """What the host spends on a source.

    Attributes:
        decode: Core-seconds of reading and decoding, of the whole source.
        resize: Core-seconds of making graph inputs.
        pictures: For the engine.
    """

    decode: float
    resize: float
    pictures: int


def _nothing() -> None:
    pass


#: Waits for the processes beside this one; set once in each, by its pool.
_together: Callable[[], object] = _nothing


def _meet(barrier: Any) -> None:
    global _together
    _together = lambda: barrier.wait(_READY_S)


def of_video(path: Path, sample: str, preprocessor: Preprocessor) -> Spent:
    """Decode a video with one thread and throw its frames away; then resize some of them, for all.

    One thread is the least work: FFmpeg's threads wait for each other.
    """
    frames = [frame.pixels for frame in islice(video(path, sample, threads=1), _FRAMES)]
    counted: list[int] = []
    _together()
    decode = clock.core_ms(lambda: counted.append(sum(1 for _ in video(path, sample, threads=1))))
    resizing = _Resizing(preprocessor)
    resizing(frames)
    _together()
    taken = clock.core_ms(lambda: resizing(frames[turn % len(frames)] for turn in range(_RESIZED)))
    return Spent(decode / 1e3, taken / 1e3 / _RESIZED * counted[0], counted[0])


def of_photographs(paths: Sequence[Path], preprocessor: Preprocessor) -> Spent:
    """Read and decode photographs, and resize them."""
    resizing = _Resizing(preprocessor)
    resizing([_decoded(preprocessor, paths[0])])
    decode = resize = 0.0
    _together()
    for path in paths:
        found: list[NDArray[np.uint8]] = []
        decode += clock.core_ms(lambda path=path, found=found: found.append(_decoded(preprocessor, path)))  # type: ignore[misc]
        resize += clock.core_ms(lambda found=found: resizing(found))  # type: ignore[misc]
    return Spent(decode / 1e3, resize / 1e3, len(paths))


def _decoded(preprocessor: Preprocessor, path: Path) -> NDArray[np.uint8]:
    return preprocessor.decode(path.read_bytes(), path.name)


class _Resizing:
    """Makes graph inputs of decoded pictures, always in the same memory."""

    def __init__(self, preprocessor: Preprocessor) -> None:
        self._preprocessor = preprocessor
        self._rows = {
            name: np.empty((spec.height, spec.width, 3), np.uint8)
            for name, spec in preprocessor.specs.items()
        }

    def __call__(self, pictures: Iterable[NDArray[np.uint8]]) -> None:
        for pixels in pictures:
            self._preprocessor.resize(pixels, self._rows, "a picture")


def preprocessor_of(bundle: Path) -> Preprocessor:
    """What makes a bundle's graph inputs of images."""
    manifest = Bundle.open(bundle).manifest
    specs = {i.name: i.resize for i in manifest.inputs if i.resize is not None}
    return Preprocessor(specs, manifest.resample)


def _host(bundle: Path, source: Path | Sequence[Path], sample: str) -> Spent:
    """In a process of its own: what the host spends on a source."""
    preprocessor = preprocessor_of(bundle)
    if not isinstance(source, Path):
        return of_photographs(source, preprocessor)
    videos = sorted(source.iterdir()) if source.is_dir() else [source]
    spent = [of_video(path, sample, preprocessor) for path in videos]
    return Spent(*(sum(values) for values in zip(*map(astuple, spent), strict=True)))


def host(subject: Subject, source: Path | Sequence[Path], sample: str = "") -> Spent:
    """What the host spends on a source, in the mean over all cores, which do the same at the same time.

    Args:
        subject: Of which bundle.
        source: A video, a folder of videos, or photographs.
        sample: Of the videos.
    """
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(subject.cores)
    with ProcessPoolExecutor(subject.cores, context, _meet, (barrier,)) as pool:
        jobs = [pool.submit(_host, subject.bundle, source, sample) for _ in range(subject.cores)]
        spent = [job.result() for job in jobs]
    return Spent(
        statistics.fmean(s.decode for s in spent),
        statistics.fmean(s.resize for s in spent),
        spent[0].pictures,
    )


def engine(subject: Subject, photographs: Sequence[Path], seconds: float = _SECONDS) -> float:
    """Core-milliseconds of the engine for a picture, in full batches.

    One call for each core at the same time, as ingestion runs it, and the next ones waiting.

    Args:
        subject: Which engine.
        photographs: What it is asked.
        seconds: Of each of three windows, the cheapest of which counts.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        windows = pool.submit(_engine, subject, list(photographs), seconds).result()
    return min(window.core_ms(subject.cores) for window in windows)


@dataclass(frozen=True)
class Window:
    """What the engine did for a while.

    Attributes:
        rate: Pictures a second.
        pictures: That it answered.
        core_seconds: Processor time of its process.
    """

    rate: float
    pictures: int
    core_seconds: float

    def core_ms(self, cores: int) -> float:
        """Core-milliseconds of a picture: all cores while it ran, or its processor time, whichever is less.

        The first has what others took of the machine in it, and the second an engine's threads that spin while they
        wait; a bound has room for neither.
        """
        return 1e3 * min(cores / self.rate, self.core_seconds / self.pictures)


def _engine(subject: Subject, photographs: Sequence[Path], seconds: float) -> list[Window]:
    """In a process of its own: what the engine does, window by window after one to warm up."""
    bundle = Bundle.open(subject.bundle)
    inputs = from_photographs(bundle.manifest, list(photographs), "as given").tensors(subject.batch)[0]
    callers = subject.cores + 1
    with (
        load(
            bundle,
            target=subject.target,
            precision=subject.precision,
            threads=subject.cores,
            streams=subject.cores,
        ) as runtime,
        ThreadPoolExecutor(callers) as pool,
    ):

        def call() -> int:
            runtime.infer(inputs)
            return subject.batch

        return [_window(call, pool, callers, seconds) for _ in range(_WINDOWS + 1)][1:]


def _window(call: Callable[[], int], pool: Executor, callers: int, seconds: float) -> Window:
    done: list[int] = []

    def counted() -> int:
        done.append(call())
        return done[-1]

    before = resource.getrusage(resource.RUSAGE_SELF)
    rates = list(pool.map(lambda _: clock.throughput(counted, seconds), range(callers)))
    after = resource.getrusage(resource.RUSAGE_SELF)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Window(sum(rates), sum(done), used)
