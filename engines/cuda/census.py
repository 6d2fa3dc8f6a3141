"""What is open: everything is given back once, in reverse order, whatever fails on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from vsa_rt.engines.cuda.seam import Closable

Opened = TypeVar("Opened", bound=Closable)

#: Kinds of what a session opens.
KINDS = ("engine", "stream", "event", "pinned", "memory", "context", "graph")


class Census:
    """Things that are open, in the order of their opening; some of them a census of their own.

    Its steps are single operations on a list, so that threads which open different slots' things need no lock here.
    """

    def __init__(self) -> None:
        self._things: list[tuple[str, Closable | Census]] = []

    def keep(self, kind: str, thing: Opened) -> Opened:
        """Count something as open.

        Args:
            kind: One of ``KINDS``.
            thing: What was opened.

        Returns:
            The same.
        """
        self._things.append((kind, thing))
        return thing

    def hand_over(self, thing: Opened) -> Opened:
        """Count something as open no longer: another census keeps it."""
        self._things = [entry for entry in self._things if entry[1] is not thing]
        return thing

    @contextmanager
    def opening(self) -> Iterator[Census]:
        """A census of its own for what is opened inside; closed if that raises, else part of this one."""
        inner = Census()
        self._things.append(("", inner))
        try:
            yield inner
        except BaseException:
            inner.close()
            self._things = [entry for entry in self._things if entry[1] is not inner]
            raise

    def counts(self) -> Counter[str]:
        """Kind to how many are open."""
        found: Counter[str] = Counter()
        for kind, thing in tuple(self._things):
            found.update(thing.counts() if isinstance(thing, Census) else {kind: 1})
        return found

    def close(self) -> list[str]:
        """Give everything back, the newest first.

        What fails is tried once more at the end, when nothing uses it any longer. An interruption waits until all is
        done.

        Returns:
            What could not be given back, and why.
        """
        refused: list[tuple[str, Closable]] = []
        failures: list[str] = []
        interruption: BaseException | None = None
        while self._things:
            kind, thing = self._things.pop()
            try:
                if isinstance(thing, Census):
                    failures += thing.close()
                else:
                    thing.close()
            except BaseException as error:  # noqa: BLE001 - the others have to be given back all the same
                if not isinstance(thing, Census):
                    refused.append((kind, thing))
                interruption = interruption or (None if isinstance(error, Exception) else error)
        for kind, thing in refused:
            try:
                thing.close()
            except Exception as error:  # noqa: BLE001 - told to the caller
                failures.append(f"{kind}: {error}")
        if interruption is not None:
            raise interruption
        return failures
