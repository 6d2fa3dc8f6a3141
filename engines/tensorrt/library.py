"""The bindings of one TensorRT, with their version, dialect and logger."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
import os
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from vsa_rt.engines.tensorrt.dialects import Dialect, dialect_of
from vsa_rt.errors import EnvironmentUnusable

#: Both are TensorRT: the one compiles on the device itself, the other ahead of time for GPUs of the RTX kind.
Package = Literal["tensorrt", "tensorrt-rtx"]
PACKAGES: tuple[Package, ...] = get_args(Package)
_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
#: L4T's release file, which every JetPack has.
_TEGRA = Path("/etc/nv_tegra_release")
#: Errors that are kept, the newest: a process may run for months.
_KEPT = 256

#: Standard output is the process's, and so is a library's logger: one compilation at a time, whichever library.
LOCK = threading.Lock()
_loggers: dict[str, tuple[Any, Any]] = {}


def install(package: str) -> str:
    """The command that makes a package importable here."""
    if package == "tensorrt" and _TEGRA.exists():
        # No index has it for Jetson: JetPack brings it, as a package of the system.
        return (
            "it comes with JetPack: sudo apt install python3-libnvinfer, in an environment made with "
            "python3 -m venv --system-site-packages"
        )
    return f"pip install 'vsa-rt[{package}]'"


@dataclass(frozen=True)
class Library:
    """One TensorRT that is there.

    Attributes:
        trt: The bindings.
        package: What it is called in targets.
        version: Such as ``10.3.0``.
        dialect: What its bindings want otherwise than the others'.
        logger: The process's: TensorRT keeps the first one that it is given. It prints nothing; ``errors`` has the
            last errors that it was told.
    """

    trt: Any
    package: Package
    version: str
    dialect: Dialect
    logger: Any

    def __str__(self) -> str:
        return f"{self.package} {self.version}"

    @contextlib.contextmanager
    def alone(self) -> Iterator[deque[str]]:
        """Around a compilation: no other one runs, and nothing is printed on standard output.

        Yields:
            The errors that the library tells meanwhile.
        """
        with LOCK, quiet_stdout():
            self.logger.errors.clear()
            yield self.logger.errors


def open_library(package: Package) -> Library:
    """The bindings of a package.

    Raises:
        EnvironmentUnusable: They are not installed, do not load, or are of a version that is not known.
    """
    try:
        trt = importlib.import_module(_MODULES[package])
    except (ImportError, OSError) as error:
        raise EnvironmentUnusable(f"{package} cannot be imported ({error}); {install(package)}") from error
    version = str(trt.__version__)
    return Library(trt, package, version, dialect_of(package, version, trt), _logger(package, trt))


def _logger(package: str, trt: Any) -> Any:
    """The one logger of a library."""
    with LOCK:
        known = _loggers.get(package)
        if known is None or known[0] is not trt:
            known = _loggers[package] = (trt, _collector(trt))
        return known[1]


def _collector(trt: Any) -> Any:
    kept = (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR)

    class Collector(trt.ILogger):  # type: ignore[misc]  # the bindings ship no types
        def __init__(self) -> None:
            super().__init__()
            self.errors: deque[str] = deque(maxlen=_KEPT)

        def log(self, severity: Any, text: str) -> None:
            if severity in kept:
                self.errors.append(text)

    return Collector()


@contextlib.contextmanager
def quiet_stdout() -> Iterator[None]:
    """Keep what a compiler prints past its logger off standard output, which holds one JSON document or results.

    What Python prints meanwhile still goes there.
    """
    libc = ctypes.CDLL(None)
    theirs: Any = sys.stdout
    try:
        kept = os.dup(1)
    except OSError:  # there is none: whoever started the process closed it
        yield
        return
    if theirs is not None:
        theirs.flush()
    ours = _beside(theirs)
    try:
        with tempfile.TemporaryFile() as nowhere:
            os.dup2(nowhere.fileno(), 1)
            if ours is not None:
                sys.stdout = ours
            yield
            libc.fflush(None)
    finally:
        if ours is not None:
            if sys.stdout is ours:
                sys.stdout = theirs
            ours.close()
        os.dup2(kept, 1)
        os.close(kept)


def _beside(stream: Any) -> Any:
    """A second stream to where this one goes; ``None`` for one that is not the process's standard output."""
    try:
        if stream.fileno() != 1:
            return None
    except (AttributeError, OSError, ValueError):  # captured by a test, or replaced
        return None
    raw = os.fdopen(os.dup(1), "wb")
    return io.TextIOWrapper(raw, stream.encoding, stream.errors, line_buffering=True)
