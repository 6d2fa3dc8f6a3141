"""How a decoder process and its parent talk: short messages over one socket, and memory that goes with them.

A message is a JSON object behind its length. Text is escaped to ASCII, so that paths that are not UTF-8 arrive as they
were. Nothing is unpickled: what a damaged decoder says is data. Bytes and pixels lie in memory files without a name
(memfd_create(2)), whose descriptors travel with the messages (unix(7), SCM_RIGHTS); they are gone when nobody has them
open or mapped any more, however their processes ended.
"""

from __future__ import annotations

import fcntl
import json
import math
import mmap
import os
import select
import socket
import struct
import sys
import tempfile
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vsa_rt.pipeline.ingest.pictures import ImageJob, VideoJob
from vsa_rt.runtime.sampling import Sample
from vsa_rt.runtime.video_kind import address

if TYPE_CHECKING:
    from vsa_rt.pipeline.ingest.pictures import Job

_HEAD = struct.Struct("!I")
#: Longer messages are nonsense: a path has 4,096 bytes at most, and reasons are sentences.
_LONGEST = 2**20
_CLOSE_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


class Wire:
    """One end of the socket. One thread may send while another receives; two that send need a lock.

    Args:
        end: The socket, which the wire closes.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._poll = select.poll()
        self._poll.register(end, select.POLLIN)

    def send(self, message: dict[str, Any], descriptor: int | None = None, *, wait: bool = True) -> None:
        """Send a message.

        Args:
            message: As `json` takes it.
            descriptor: A file that the other end gets as well; it stays open here.
            wait: If there is no room, wait for it rather than drop the message.

        Raises:
            OSError: The other end is gone, or no descriptor is left.
            ValueError: The message is too long.
        """
        text = json.dumps(message).encode("ascii")
        if len(text) > _LONGEST:
            raise ValueError(f"a message of {len(text):,} bytes, more than {_LONGEST:,}")
        data = _HEAD.pack(len(text)) + text
        if not wait:
            try:  # so short a message goes as a whole, or not at all
                self._socket.send(data, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            return
        files = [] if descriptor is None else [descriptor]
        sent = socket.send_fds(self._socket, [data], files) if files else self._socket.send(data)
        if sent < len(data):
            self._socket.sendall(data[sent:])

    def receive(self, timeout: float | None = None) -> tuple[dict[str, Any], int | None]:
        """Wait for a message.

        Args:
            timeout: Seconds to wait; ``None`` waits for ever.

        Returns:
            The message, and the descriptor that came with it, which is the caller's to close.

        Raises:
            EOFError: The other end is gone.
            TimeoutError: Nothing came in time.
            ValueError: What came is no message.
        """
        if not self._poll.poll(None if timeout is None else math.ceil(timeout * 1000)):
            raise TimeoutError
        descriptors: list[int] = []
        try:
            (length,) = _HEAD.unpack(self._exactly(_HEAD.size, descriptors))
            if length > _LONGEST:
                raise ValueError(f"a message of {length:,} bytes")
            message = json.loads(self._exactly(length, descriptors))
            if not isinstance(message, dict):
                raise ValueError("a message that is no object")  # noqa: TRY004 - what came is wrong, no argument
        except BaseException:
            for descriptor in descriptors:
                os.close(descriptor)
            raise
        return message, descriptors[0] if descriptors else None

    def close(self) -> None:
        """Close this end."""
        self._socket.close()

    def _exactly(self, count: int, descriptors: list[int]) -> bytes:
        data = b""
        while len(data) < count:
            try:
                more, found, _, _ = socket.recv_fds(self._socket, count - len(data), 1, _CLOSE_ON_EXEC)
            except ConnectionError:
                raise EOFError from None
            descriptors += found
            if not more:
                raise EOFError
            data += more
        return data


# Memory


def memory(content: bytes | memoryview = b"") -> int:
    """A memory file that holds some bytes, as a descriptor that the caller closes.

    Raises:
        OSError: There is not enough memory, or no descriptor is left.
    """
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("vsa-rt", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    else:
        with tempfile.TemporaryFile(buffering=0) as file:  # has no name, or loses it at once
            descriptor = os.dup(file.fileno())
    try:
        rest = memoryview(content).cast("B")
        while len(rest):
            rest = rest[os.write(descriptor, rest) :]
        if hasattr(os, "memfd_create"):
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def contents(descriptor: int) -> bytes:
    """All bytes of a memory file; closes it."""
    with open(descriptor, "rb", buffering=0) as file:
        file.seek(0)
        return file.read()


def mapped(descriptor: int, height: int, width: int) -> NDArray[np.uint8]:
    """The pixels ``(height, width, 3)`` in a memory file, not copied; closes it. The memory goes with the array.

    Raises:
        ValueError: The file is smaller than that; looking at it would end this process.
    """
    try:
        nbytes = height * width * 3
        size = os.fstat(descriptor).st_size
        if height < 1 or width < 1 or size < nbytes:
            raise ValueError(f"a picture of {width} x {height} in {size:,} bytes")
        # A decoder that a file took over could make it smaller while it is looked at.
        sealed = not hasattr(os, "memfd_create") or (
            fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
        )
        if not sealed:
            raise ValueError("a picture in memory that may shrink")
        if sys.version_info >= (3, 13):
            mapping = mmap.mmap(descriptor, nbytes, access=mmap.ACCESS_READ, trackfd=False)
        else:  # a mapping has a descriptor of its own for as long as it lives
            mapping = mmap.mmap(descriptor, nbytes, access=mmap.ACCESS_READ)
    finally:
        os.close(descriptor)
    return np.frombuffer(mapping, np.uint8).reshape(height, width, 3)


# Jobs


def job_message(job: Job) -> dict[str, Any]:
    """A job as a message; encoded bytes go beside it."""
    if isinstance(job, ImageJob):
        message: dict[str, Any] = {"job": "image", "at_least": job.at_least, "perceptual": job.perceptual}
    else:
        rate, sample = job.sample.rate, job.sample
        message = {
            "job": "video",
            "sample": [sample.kind, rate.numerator, rate.denominator, sample.count],
            "end": job.end,
            "threads": job.threads,
            "timeout": job.timeout,
            "format": job.format,
        }
    return message | {"path": _absolute(job) if isinstance(job.source, str) else None}


def job_of(message: dict[str, Any], content: bytes | None) -> Job:
    """The job in a message."""
    source: str | bytes = message["path"] if content is None else content
    if message["job"] == "image":
        at_least = message["at_least"]
        return ImageJob(
            source, None if at_least is None else (at_least[0], at_least[1]), message["perceptual"]
        )
    kind, numerator, denominator, count = message["sample"]
    sample = Sample(kind, Fraction(numerator, denominator), count)
    return VideoJob(source, sample, message["end"], message["threads"], message["timeout"], message["format"])


def _absolute(job: Job) -> str | bytes:
    """A job's path, wherever the decoder's working directory is by now."""
    source = job.source
    if not isinstance(source, str) or not source or address(source):
        return source
    try:
        # With a format of the caller's choice, it may be whatever that format calls its input.
        if isinstance(job, VideoJob) and job.format is not None and not os.path.exists(source):
            return source
        return os.path.join(os.getcwd(), source)
    except (OSError, ValueError):  # the decoder will say what is wrong with it
        return source
