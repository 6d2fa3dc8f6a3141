"""Decoder processes with planted faults: the real program, with something of it replaced before it begins."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

#: Longer than anything here takes: a wait that ends by it failed.
SOON = 30.0

#: Decoding a source whose name holds ``bad`` does this instead.
_FAULTY = """
real = d.decode
def decode(source, **options):
    if "bad" in str(source):
        {fault}
    return real(source, **options)
d.decode = decode
"""
#: A video without end whose frames are numbered, and counted in a file, one byte each, when they are asked for.
_COUNTED = """
import numpy, types
def video(source, *unused, alive, **options):
    number = 0
    while True:
        with open(source, "ab") as file:
            file.write(b".")
        alive()
        pixels = numpy.full(({height}, {width}, 3), number % 256, numpy.uint8)
        yield types.SimpleNamespace(pixels=pixels, seconds=float(number), index=number)
        number += 1
        {then}
d.video = video
"""


def planted(code: str) -> list[str]:
    """A command for `Decoder`: the decoder's program, after some code that sees its module as ``d``."""
    begin = f"import sys; sys.path[:] = {sys.path!r}; import vsa_rt.pipeline.ingest.decoder_main as d"
    return [sys.executable, "-c", f"{begin}\n{code}\nd.main()"]


def faulty(fault: str) -> list[str]:
    """A decoder that does something else, in one line, for paths with ``bad`` in them."""
    return planted(_FAULTY.format(fault=fault))


def counted(height: int = 4, width: int = 6, before: str = "", then: str = "pass") -> list[str]:
    """A decoder whose videos have no end; the size of the file that a job names is how many frames were asked for.

    Args:
        height: Of its frames, and
        width: likewise.
        before: Lines to run first.
        then: What it does after each frame, in one line.
    """
    return planted(before + _COUNTED.format(height=height, width=width, then=then))


def until(true: Callable[[], object], seconds: float = SOON) -> bool:
    """Wait until something holds; whether it does."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def state(pid: int) -> str:
    """A process's state as the kernel calls it: ``R``, ``S``, ``T``, ``Z``, …; empty if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def gone(pid: int) -> bool:
    """Whether a process is no more, or is dead and only its parent does not know yet."""
    return state(pid) in ("", "Z", "X")


def descriptors() -> int:
    """Files that this process has open."""
    return len(os.listdir("/proc/self/fd"))


def mapped_pictures() -> int:
    """Pictures whose shared memory this process has mapped."""
    return Path("/proc/self/maps").read_text().count("memfd:vsa-rt")
