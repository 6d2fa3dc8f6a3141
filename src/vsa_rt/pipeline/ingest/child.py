"""A decoder process, as its parent has it: started, spoken to, ended, and asked what it died of."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from vsa_rt.errors import EnvironmentUnusable
from vsa_rt.pipeline.ingest.wire import Wire, memory

#: Seconds for interpreter and libraries to be there, also on a machine that is busy or reads them from a slow disk.
START = 60.0
#: Seconds that the parent waits beyond the time limit, which the process keeps by itself: unless it was stopped
#: (SIGSTOP), or its timer was taken by a library.
GRACE = 5.0
# The parent's search path is the child's before it imports anything: not the working directory, which is `-c`'s.
_PROGRAM = (
    "import sys; sys.path[:] = sys.argv[1:-1]; from vsa_rt.pipeline.ingest.decoder_main import main; main()"
)


class Ended(Exception):
    """The process is gone, or has to go: it is silent, or talks nonsense."""


class Child:
    """A decoder process.

    It is a fresh interpreter and no fork: the parent has threads, and needs no `__main__` that can be imported again.

    Args:
        command: What to run with the number of a socket as last argument; ``None``: this package's decoder.

    Attributes:
        limit: Seconds of the job under way, for ``why``.

    Raises:
        EnvironmentUnusable: The system starts no more processes.
    """

    def __init__(self, command: Sequence[str] | None = None) -> None:
        self.limit = 0.0
        self._fault = ""
        self._ready = False
        arguments = _command() if command is None else list(command)
        try:
            self._stderr = memory()
            try:
                self.wire, self._process = _started(arguments, self._stderr)
            except BaseException:
                os.close(self._stderr)
                raise
        except OSError as error:
            raise EnvironmentUnusable(
                f"a decoder process cannot be started: {error.strerror}; allow more processes or free memory"
            ) from error

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def wait_until_ready(self) -> None:
        """Wait until it can take a job.

        Raises:
            Ended: It cannot.
        """
        if not self._ready:
            self.limit = START
            self.receive(START)
            self._ready = True

    def begin(self, message: dict[str, Any], content: int | None, limit: float) -> None:
        """Give it a job, and wait until it has it.

        Args:
            message: The job.
            content: The memory file that goes with it, if one does.
            limit: Seconds without progress after which the process is to end.

        Raises:
            Ended: It does not take it.
            ValueError: The message is too long.
        """
        self.limit = limit
        try:
            self.wire.send(message | {"limit": limit}, content)
        except ConnectionError:
            raise Ended from None
        self.receive()

    def receive(self, timeout: float | None = None) -> tuple[dict[str, Any], int | None]:
        """Wait for its next message.

        Args:
            timeout: Seconds; the job's limit and some more if ``None``.

        Raises:
            Ended: None comes.
        """
        try:
            return self.wire.receive(self.limit + GRACE if timeout is None else timeout)
        except EOFError:
            pass
        except TimeoutError:
            self._fault = _silent(self.limit)
        except ValueError as error:
            self.fail(str(error))
        raise Ended

    def fail(self, fault: str) -> None:
        """It said what cannot be; ``why`` will tell."""
        self._fault = f"its decoder gave what is none: {fault}"

    def why(self) -> str:
        """Ends the process if it still runs, and says what it died of, in one sentence."""
        if not self._fault:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE)
        fault, code = self._fault, self._process.poll()
        self.end()
        if fault or code is None:
            return fault or _silent(self.limit)
        if code >= 0:
            said = self._last_line()
            return f"its decoder ended (exit code {code})" + (f": {said}" if said else "")
        return _died(-code, self.limit)

    def kill(self) -> None:
        """End the process at once, whatever it is doing."""
        self._process.kill()

    def end(self) -> None:
        """End the process, and let the system forget it."""
        self._process.kill()
        # One that hangs within the kernel, on a dead network disk, goes when it can.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE)

    def close(self) -> None:
        """End the process, and close what it was spoken to through; not while another thread waits for a message."""
        self.end()
        self.wire.close()
        if self._stderr >= 0:
            os.close(self._stderr)
            self._stderr = -1

    def _last_line(self) -> str:
        size = os.fstat(self._stderr).st_size
        lines = os.pread(self._stderr, 4096, max(0, size - 4096)).decode("utf-8", "replace").split("\n")
        return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")


def _started(arguments: Sequence[str], stderr: int) -> tuple[Wire, subprocess.Popen[bytes]]:
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            process = subprocess.Popen(
                [*arguments, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                pass_fds=(theirs.fileno(),),
                env=_environment(),
                start_new_session=True,  # what a terminal sends to all, Ctrl-C and Ctrl-Z, is for the parent
            )
        except BaseException:
            ours.close()
            raise
    return Wire(ours), process


def _silent(limit: float) -> str:
    return f"its decoder made no progress for {limit:g} s and was ended"


def _died(number: int, limit: float) -> str:
    if number == signal.SIGALRM:
        return _silent(limit)
    try:
        name = signal.Signals(number).name
    except ValueError:  # a real-time signal
        name = f"signal {number}"
    if number == signal.SIGKILL:
        return f"its decoder was killed ({name}); too little memory?"
    if number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        return f"its decoder was ended from outside ({name})"
    return f"its decoder crashed ({name})"


def _command() -> list[str]:
    if not sys.executable:
        raise EnvironmentUnusable(
            "a decoder process needs a Python interpreter, and this program does not say where its own is"
        )
    flags = [
        flag
        for flag, given in (
            ("-I", sys.flags.isolated),
            ("-E", sys.flags.ignore_environment),
            ("-s", sys.flags.no_user_site),
            ("-S", sys.flags.no_site),
        )
        if given
    ]
    if sys.flags.utf8_mode:
        flags += ["-X", "utf8"]
    path = [
        entry for entry in sys.path if isinstance(entry, str) and os.path.isabs(entry) and "\0" not in entry
    ]
    return [sys.executable, *flags, "-c", _PROGRAM, *path]


def _environment() -> dict[str, str]:
    # There are as many decoders as cores; threads for matrices, which none of them has, would only take memory.
    return {"OPENBLAS_NUM_THREADS": "1"} | os.environ
