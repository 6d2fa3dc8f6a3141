"""A compilation that tells how far it is, and stops when it is told to."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

#: Cells of the bar.
_CELLS = 20
#: Seconds after which the waiting thread looks up: a signal may have come while it read.
_LOOK = 0.1


class Phases:
    """The compiler's phases, nested in each other, as one share of the whole.

    Threads of the compiler's own may report at the same time.

    Args:
        what: What is compiled.
        tell: Takes a line whenever there is another percentage.
    """

    def __init__(self, what: str, tell: Callable[[str], None]) -> None:
        self._what, self._tell = what, tell
        self._lock = threading.Lock()
        #: Name to parent, number of steps, and how many are done.
        self._open: dict[str, tuple[str, int, int]] = {}
        self._told = -1

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase begins, within another or by itself."""
        with self._lock:
            self._open[name] = (parent or "", max(1, steps), 0)
            self._look(name)

    def step(self, name: str, step: int) -> None:
        """A step of a phase, counted from 0, is done."""
        with self._lock:
            if name in self._open:
                parent, steps, done = self._open[name]
                self._open[name] = (parent, steps, min(steps, max(done, step + 1)))
                self._look(name)

    def finish(self, name: str) -> None:
        """A phase ends, and what was left of its steps with it."""
        with self._lock:
            self._open.pop(name, None)

    def _of(self, name: str, seen: frozenset[str] = frozenset()) -> float:
        """Share of a phase that is done, what is open within its present step included."""
        _, steps, done = self._open[name]
        inner = [n for n, (parent, _, _) in self._open.items() if parent == name and n not in seen]
        within = max((self._of(n, seen | {name}) for n in inner), default=0.0)
        return min(1.0, (done + within) / steps)

    def _look(self, name: str) -> None:
        roots = [n for n, (parent, _, _) in self._open.items() if parent not in self._open]
        percent = int(100 * max((self._of(n) for n in roots), default=0.0))
        # A phase that follows another within a step takes back what that one seemed to be: a bar does not.
        if percent > self._told:
            self._told = percent
            full = percent * _CELLS // 100
            bar = "█" * full + "░" * (_CELLS - full)
            self._tell(f"compiling {self._what} {bar} {percent} %, {name}")


def _monitor(trt: Any, phases: Phases, stopped: threading.Event, failed: list[BaseException]) -> Any:
    """The library's own monitor: it never raises, which would end the process."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the bindings ship no types
        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._do(phases.start, phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._do(phases.step, phase_name, step)
            return not stopped.is_set()

        def phase_finish(self, phase_name: str) -> None:
            self._do(phases.finish, phase_name)

        def _do(self, what: Callable[..., None], *arguments: Any) -> None:
            try:
                what(*arguments)
            except BaseException as error:  # noqa: BLE001 - kept, and raised once the compiler has stopped
                failed.append(error)
                stopped.set()

    return Monitor()


def build(
    trt: Any,
    builder: Any,
    network: Any,
    config: Any,
    what: str,
    progress: Callable[[str], None],
    enter: Callable[[], None],
) -> bytes | None:
    """Compile in a thread of its own, so that Ctrl-C is heard whatever the compiler does.

    Args:
        trt: The bindings.
        builder: The library's.
        network: What is compiled.
        config: How.
        what: Its name in what is told.
        progress: Told of every percentage, in the calling thread.
        enter: Makes the device that is compiled on the thread's own.

    Returns:
        The engine; ``None`` if the compiler refuses.

    Raises:
        KeyboardInterrupt: Ctrl-C. The compiler has stopped by then; it does so after its present step.
        BaseException: Likewise whatever ``progress`` raises.
    """
    told: queue.SimpleQueue[str] = queue.SimpleQueue()
    stopped, done = threading.Event(), threading.Event()
    failed: list[BaseException] = []
    made: list[bytes] = []
    monitor = _monitor(trt, Phases(what, told.put), stopped, failed)
    config.progress_monitor = monitor

    def work() -> None:
        try:
            enter()
            engine = builder.build_serialized_network(network, config)
            if engine is not None:
                made.append(bytes(engine))
        except BaseException as error:  # noqa: BLE001 - kept, and raised in the thread that waits
            failed.append(error)
        finally:
            done.set()

    worker = threading.Thread(target=work, name="vsa-rt compiler")
    worker.start()
    while worker.is_alive():
        try:
            _pass_on(told, done, stopped, progress)
            worker.join()
        except BaseException as error:  # noqa: BLE001 - kept, and raised once the compiler has stopped
            failed.append(error)
            stopped.set()
    if failed:
        raise failed[0]
    return made[0] if made else None


def _pass_on(
    told: queue.SimpleQueue[str],
    done: threading.Event,
    stopped: threading.Event,
    progress: Callable[[str], None],
) -> None:
    """Tell what the compiler tells until it is done; nothing more once it was told to stop."""
    while not (done.is_set() and told.empty()):
        try:
            line = told.get(timeout=_LOOK)
        except queue.Empty:
            continue
        if not stopped.is_set():
            progress(line)
