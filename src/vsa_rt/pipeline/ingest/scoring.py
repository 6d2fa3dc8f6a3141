"""Pictures to scores: steps go in, and come out in order, each picture's with the engine's answer.

This is the only place where ingestion meets the engine, and it keeps nothing from one batch to the next: whatever turns
an iterator of pictures into one of answers may take the runtime's place.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

from vsa_rt.contracts import Sentiment
from vsa_rt.errors import ItemError
from vsa_rt.pipeline.ingest.channel import Channel
from vsa_rt.pipeline.ingest.work import End, Look

Answer: TypeAlias = Sentiment | ItemError
#: A batch of pictures to a batch of answers, in order; ``rt.stream`` is one.
Score: TypeAlias = Callable[[Iterator[Any]], Iterable[Answer]]
Step: TypeAlias = Look | End
#: A picture that was looked at.
Answered: TypeAlias = tuple[Look, Answer]
#: A step, and of a ``Look`` its picture.
Sent: TypeAlias = tuple[Step, Any]

#: Steps that may wait for an answer, or for the one before them.
_MOST = 4096
#: Seconds without an answer after which the reader is told so, for it may have other things to do.
_IDLE = 1.0


class Scoring:
    """Sends what comes through a channel to the engine, in threads of its own.

    Args:
        channel: Steps with their pictures.
        score: The engine.
    """

    def __init__(self, channel: Channel[Sent], score: Score) -> None:
        self._channel, self._score = channel, score
        self._changed = threading.Condition()
        self._steps: deque[Step] = deque()
        self._answers: deque[Answer] = deque()
        self._ended = self._stopped = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="vsa-ingest-score", daemon=True)

    def start(self) -> None:
        """Start."""
        self._thread.start()

    def close(self) -> None:
        """Send nothing more, and wait until the engine has answered what it has."""
        self._channel.close()
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            for answer in self._score(self._pictures()):
                with self._changed:
                    self._answers.append(answer)
                    self._changed.notify_all()
        except BaseException as error:  # noqa: BLE001 - handed to the reader
            self._failure = error
        finally:
            self._channel.close()
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _pictures(self) -> Iterator[Any]:
        for step, picture in self._channel:
            with self._changed:
                # Batches go at the latest when their oldest picture has waited long enough, so this ends.
                while len(self._steps) >= _MOST and not self._stopped:
                    self._changed.wait()
                self._steps.append(step)
                self._changed.notify_all()
            if isinstance(step, Look):
                yield picture
                del picture

    def __iter__(self) -> Iterator[Answered | End | None]:
        """Steps in order, a ``Look`` with its answer; ``None`` where there was none for a second.

        Raises:
            BaseException: What ended the channel or the engine.
        """
        while True:
            with self._changed:
                found = self._next()
                if found is None and self._ended:
                    break
                if found is None:
                    self._changed.wait(_IDLE)
                    found = self._next()
                else:
                    self._changed.notify_all()
            yield found
        if self._failure is not None:
            raise self._failure

    def _next(self) -> Answered | End | None:
        step = self._steps[0] if self._steps else None
        if isinstance(step, Look):
            if not self._answers:
                return None
            self._steps.popleft()
            return step, self._answers.popleft()
        if step is not None:
            self._steps.popleft()
        return step
