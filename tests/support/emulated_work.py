"""Device work as a graph of what waits for what: run as late as can be, and in the least convenient order."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from vsa_rt.errors import EnvironmentUnusable

#: First byte, and the one after the last.
Span = tuple[int, int]


class Misuse(EnvironmentUnusable):
    """Something that a driver, or a library, would refuse or that would compute nonsense."""


def overlap(one: Iterable[Span], other: Iterable[Span]) -> Span | None:
    """The first bytes that two sets of spans share."""
    others = list(other)
    for a, b in one:
        for c, d in others:
            if max(a, c) < min(b, d):
                return max(a, c), min(b, d)
    return None


def _nothing() -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Action:
    """What one piece of work does.

    Attributes:
        name: For messages.
        run: Does it.
        check: Raises if it cannot be done now: memory was freed, a context was closed.
        reads: Bytes that it reads.
        writes: Bytes that it writes.
        alone: What nothing else may use at the same time.
    """

    name: str
    run: Callable[[], None] = _nothing
    check: Callable[[], None] = _nothing
    reads: Sequence[Span] = ()
    writes: Sequence[Span] = ()
    alone: Sequence[object] = ()

    def conflict(self, other: Action) -> str:
        """Why both must not run at the same time; empty if they may."""
        if any(a is b for a in self.alone for b in other.alone):
            return "use the same context"
        touched = [*other.reads, *other.writes]
        shared = overlap(self.writes, touched) or overlap(self.reads, other.writes)
        return f"touch the bytes {shared[0]:#x} to {shared[1]:#x}" if shared else ""


_NUMBERS = itertools.count()


@dataclass(eq=False)
class Node:
    """An action in its place.

    Attributes:
        action: What is done.
        after: What must be done before; emptied once it is.
    """

    action: Action
    after: tuple[Node, ...] = ()
    state: Literal["waiting", "running", "done", "lost"] = "waiting"
    number: int = field(default_factory=lambda: next(_NUMBERS))
    #: Whose thread runs it; 0 before.
    thread: int = 0

    def before(self) -> set[Node]:
        """All that this one waits for and that is not done."""
        found: set[Node] = set()
        look = list(self.after)
        while look:
            node = look.pop()
            if node not in found and node.state != "done":
                found.add(node)
                look += node.after
        return found


def race(node: Node, others: Iterable[Node]) -> str:
    """What the node must not run beside although neither waits for the other; empty if there is nothing."""
    before = node.before()
    for other in others:
        if other is node or other in before:
            continue
        if why := node.action.conflict(other.action):
            return f"{node.action.name} and {other.action.name} {why}, and neither waits for the other"
    return ""


class Work:
    """All that was put into streams and is not done. Nothing runs before somebody waits for it, and then only what he
    waits for needs; of what could run next, the newest does: work that forgot to wait comes too early.

    Args:
        lawful: Whether work that could run beside other work and must not is refused when it is put in. Otherwise it
            computes nonsense.
    """

    def __init__(self, lawful: bool) -> None:
        self._lawful = lawful
        self._changed = threading.Condition()
        self._pending: list[Node] = []
        #: Set by the first action that raised: the device is of no use any more.
        self.failure = ""

    def pending(self) -> list[Node]:
        """What is not done."""
        with self._changed:
            return list(self._pending)

    def add(self, nodes: Sequence[Node]) -> None:
        """Put work in.

        Raises:
            Misuse: It could run beside other work that touches the same bytes.
        """
        with self._changed:
            for node in nodes:
                if self._lawful and (found := race(node, self._pending)):
                    self._pending = [n for n in self._pending if n not in nodes]
                    raise Misuse(f"a race: {found}")
                self._pending.append(node)
            self._changed.notify_all()

    def uses(self, span: Span) -> str:
        """Which pending work touches these bytes; empty if none does."""
        return next(
            (n.action.name for n in self.pending() if overlap([span], [*n.action.reads, *n.action.writes])),
            "",
        )

    def holds(self, thing: object) -> str:
        """Which pending work needs a thing; empty if none does."""
        return next((n.action.name for n in self.pending() if any(o is thing for o in n.action.alone)), "")

    def lose(self, failure: str = "") -> None:
        """Drop all work: the device failed.

        Args:
            failure: Keeps it failed.
        """
        with self._changed:
            self.failure = self.failure or failure
            for node in self._pending:
                if node.state == "waiting":
                    node.state = "lost"
            self._pending = [n for n in self._pending if n.state == "running"]
            self._changed.notify_all()

    def finish(self, target: Node | None) -> None:
        """Do all that a node needs, and the node.

        Raises:
            EnvironmentUnusable: An action raised, or the work was lost.
        """
        while target is not None and target.state != "done":
            node = self._next(target)
            if node is not None:
                self._do(node)

    def finish_all(self) -> None:
        """Do all that is there, but what runs in this thread: the collector may ask from inside of it.

        Raises:
            EnvironmentUnusable: An action raised, or the work was lost.
        """
        here = threading.get_ident()
        for node in self.pending():
            if node.state != "running" or node.thread != here:
                self.finish(node)

    def _next(self, target: Node) -> Node | None:
        with self._changed:
            needed = {target} | target.before()
            if any(n.state == "lost" for n in needed):
                raise EnvironmentUnusable(f"the device failed: {self.failure or 'its work was lost'}")
            ready = [n for n in needed if n.state == "waiting" and all(a.state == "done" for a in n.after)]
            if ready:
                found = max(ready, key=lambda n: n.number)
                found.state, found.thread = "running", threading.get_ident()
                return found
            if target.state != "done":
                self._changed.wait()
            return None

    def _do(self, node: Node) -> None:
        try:
            node.action.check()
            node.action.run()
        except BaseException as error:
            with self._changed:
                node.state = "lost"
            self.lose(str(error) or type(error).__name__)
            raise EnvironmentUnusable(f"the device failed in {node.action.name}: {error}") from error
        finally:
            with self._changed:
                if node.state == "running":
                    node.state = "done"
                node.after = ()
                self._pending = [n for n in self._pending if n is not node]
                self._changed.notify_all()
