"""Pieces opened ahead: in order, bounded, and given up where nothing moves."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vsa_rt.errors import ItemError
from vsa_rt.pipeline.ingest.budget import Held
from vsa_rt.pipeline.ingest.duplicates import content_hash
from vsa_rt.pipeline.ingest.opening import Openers, Opening
from vsa_rt.pipeline.ingest.records import Piece
from vsa_rt.pipeline.ingest.work import Work

#: Seconds after which a test that hangs fails.
SAFETY = 30.0


def piece(key: str) -> Piece:
    return Piece(key, "image", lambda: key)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Lets stuck threads go at the end."""
    event = threading.Event()
    yield event
    event.set()


def test_works_come_in_the_order_of_their_pieces() -> None:
    openers = Openers(3, lambda opening: Work(opening.piece.key, "image"), 4)

    def submit() -> None:
        for number in range(50):
            openers.submit(piece(str(number)))
        openers.opened.finish()

    threading.Thread(target=submit, daemon=True).start()
    found = [opening.result(SAFETY) for opening in openers.opened]
    assert [work.key for work in found if work] == [str(number) for number in range(50)]
    openers.close()


def test_a_piece_that_does_not_move_is_given_up_and_the_others_go_on(gate: threading.Event) -> None:
    def work_of(opening: Opening) -> Work:
        if opening.piece.key == "stuck":
            gate.wait()
        return Work(opening.piece.key, "image")

    openers = Openers(1, work_of, 4)
    for key in ("stuck", "next"):
        openers.submit(piece(key))
    waiting = iter(openers.opened)
    assert next(waiting).result(0.1) is None
    openers.replace()
    found = next(waiting).result(SAFETY)
    assert found is not None
    assert found.key == "next"
    openers.close()


def test_a_piece_that_moves_is_not_given_up(gate: threading.Event) -> None:
    moves = 0

    def work_of(opening: Opening) -> Work:
        nonlocal moves
        while opening.moved() and moves < 40:
            moves += 1
            gate.wait(0.05)
        return Work(opening.piece.key, "image")

    openers = Openers(1, work_of, 1)
    openers.submit(piece("slow"))
    assert next(iter(openers.opened)).result(1.0) is not None  # it takes two seconds, and moves all the time
    assert moves == 40
    openers.close()


def test_closing_ends_who_waits_and_who_reads(gate: threading.Event) -> None:
    begun = threading.Event()
    told: list[bool] = []

    def work_of(opening: Opening) -> Work:
        begun.set()
        while opening.moved():
            gate.wait(0.01)
        told.append(True)
        return Work(opening.piece.key, "image")

    openers = Openers(1, work_of, 1)
    openers.submit(piece("endless"))
    opening = next(iter(openers.opened))
    assert begun.wait(SAFETY)
    openers.close()
    opening.result(SAFETY)
    for _ in range(500):
        if told:
            break
        gate.wait(0.01)
    assert told
    assert not openers.submit(piece("late"))


def test_hashing_is_given_up_where_nobody_wants_it(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(bytes(3 << 20))
    asked = []

    def wanted() -> bool:
        asked.append(True)
        return len(asked) < 2

    with pytest.raises(ItemError, match="given up"):
        content_hash(path, "a.mp4", wanted)
    assert len(asked) == 2


def test_who_holds_too_many_bytes_waits_until_some_are_given_back() -> None:
    held = Held(100)
    give = held.take(150)  # one large piece is never stuck
    passed = threading.Event()

    def wait() -> None:
        held.wait()
        passed.set()

    threading.Thread(target=wait, daemon=True).start()
    assert not passed.wait(0.2)
    give()
    give()  # a second time does nothing
    assert passed.wait(SAFETY)
    held.take(100)
    held.close()
    assert not held.wait()
