"""Whatever fails, and wherever: a session on the emulated GPU gives everything back, and says what failed first."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from cuda_sessions import MERGED, STREAMS, check_results, open_session, opened
from emulated_cuda import EmulatedDevice
from emulated_engine import Compute
from emulated_ensemble import Ensemble, Tensors, items
from emulated_memory import TheirArray

from vsa_rt.engines.cuda.census import Census
from vsa_rt.engines.cuda.session import CudaSession
from vsa_rt.errors import EnvironmentUnusable, UsageError


class Stop(BaseException):
    """An interruption, such as Ctrl-C."""


def life(device: EmulatedDevice, division: Any = STREAMS) -> tuple[CudaSession | None, BaseException | None]:
    """Open a session, prepare it, run batches of all kinds, close it: up to the first exception, and closing after it.

    Returns:
        The session, if there was one, and what was raised.
    """
    ensemble = Ensemble(device)
    session: CudaSession | None = None
    raised: BaseException | None = None
    kept: dict[str, Any] = {}
    try:
        session = open_session(ensemble, max_batch=4, division=division)
        session.prepare([1])
        for slot in session.slots:
            for count in (3, 1):
                check_results(ensemble, slot, count)
        theirs = {name: TheirArray(device, array) for name, array in items(2).items()}
        kept |= session.slots[0].run_device(theirs, True)
        assert np.array_equal(kept["scores"].to_host(), ensemble.reference(items(2))["scores"])
        session.slots[1].run_device(theirs, False)
    except (EnvironmentUnusable, Stop) as error:
        raised = error.with_traceback(None)  # its frames hold what was kept
    for array in kept.values():
        try:
            array.close()
        except Stop as error:
            raised = raised or error.with_traceback(None)
    for _ in range(2):
        try:
            if session is not None:
                session.close()
        except Stop as error:
            raised = raised or error.with_traceback(None)
    return session, raised


def check_closed(device: EmulatedDevice, session: CudaSession | None) -> None:
    """Nothing is open, nothing was wrong on the way, and the session refuses work."""
    assert device.faults == []
    assert device.open() == {}, "something is left open"
    if session is not None:
        assert not any(session.open_resources().values())
        assert session.slots[0].buffers == {}


@pytest.mark.parametrize("division", [MERGED, STREAMS], ids=["merged", "streams"])
@pytest.mark.parametrize("kind", ["once", "for good", "interruption"])
def test_everything_is_closed_after_a_failure_at_each_call(kind: str, division: Any) -> None:
    calm = EmulatedDevice()
    session, raised = life(calm, division)
    assert raised is None
    check_closed(calm, session)
    closing = 1 + max(i for i, call in enumerate(calm.log) if call.name == "event.sync")
    for number in range(len(calm.log)):
        device = EmulatedDevice()
        device.fail_at(number, Stop() if kind == "interruption" else None, sticky=kind == "for good")
        session, raised = life(device, division)
        assert device.spent
        name = calm.log[number].name
        where = f"call {number}, {name}"
        assert device.faults == [], where
        assert device.open() == {}, where
        if session is not None:
            assert not any(session.open_resources().values()), where
        told = isinstance(raised, Stop) if kind == "interruption" else isinstance(raised, EnvironmentUnusable)
        # Work goes on where a capture failed, twice too, and closing wherever it can; else the failure is the caller's.
        noted = session is not None and any("asked for" in note for note in session.notes)
        again = device.names().count("context.capturable") > calm.names().count("context.capturable")
        assert told or noted or again or name.endswith(".close") or number >= closing, where


@pytest.mark.parametrize("forgotten", ["stream", "event", "pinned", "memory", "context", "graph", "engine"])
def test_what_is_left_open_is_caught(monkeypatch: pytest.MonkeyPatch, forgotten: str) -> None:
    keep = Census.keep

    def lose(self: Census, kind: str, thing: Any) -> Any:
        return thing if kind == forgotten else keep(self, kind, thing)

    monkeypatch.setattr(Census, "keep", lose)
    device = EmulatedDevice()
    session, _ = life(device)
    with pytest.raises(AssertionError):
        check_closed(device, session)


def test_a_failure_in_the_middle_that_leaves_something_open_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calm = EmulatedDevice()
    life(calm)
    number = [c.name for c in calm.log].index("context.bind")
    monkeypatch.setattr(Census, "close", lambda self: [])
    device = EmulatedDevice()
    device.fail_at(number)
    session, _ = life(device)
    with pytest.raises(AssertionError, match="something is left open"):
        check_closed(device, session)


def test_closing_under_work_that_was_not_waited_for_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    calm = EmulatedDevice()
    life(calm)
    # The second copy of a plain run fails: the first is under way.
    number = [c.name for c in calm.log].index("stream.copy") + 1
    monkeypatch.setattr("vsa_rt.engines.cuda.slot.CudaSlot._drain", lambda _: None)
    device = EmulatedDevice()
    device.fail_at(number)
    life(device)
    assert any("under way" in fault for fault in device.faults)


# A device that failed


def wrong(_: Tensors) -> Tensors:
    raise ZeroDivisionError("a kernel failed")


def failing(fails: threading.Event) -> Callable[[str, Compute], Compute]:
    """Engines that fail once the event is set."""

    def around(_: str, compute: Compute) -> Compute:
        return lambda given: wrong(given) if fails.is_set() else compute(given)

    return around


def test_after_a_failure_of_the_device_every_call_names_the_first_one() -> None:
    device, fails = EmulatedDevice(), threading.Event()
    ensemble = Ensemble(device, around=failing(fails))
    with opened(ensemble) as session:
        check_results(ensemble, session.slots[0], 2)
        fails.set()
        with pytest.raises(EnvironmentUnusable, match="a kernel failed"):
            session.slots[0].run(items(2))
        before = len(device.log)
        for act in (
            lambda: session.slots[0].run(items(2)),
            lambda: session.slots[1].run(items(1)),
            lambda: session.slots[1].run_device({}, True),
            lambda: session.prepare([4]),
        ):
            with pytest.raises(
                EnvironmentUnusable, match=r"failed before.*a kernel failed.*close it and open"
            ):
                act()
        assert len(device.log) == before, "a broken device is asked for work"


def test_after_a_failure_a_new_session_on_another_device_works() -> None:
    device, fails = EmulatedDevice(), threading.Event()
    fails.set()
    with opened(Ensemble(device, around=failing(fails))) as session, pytest.raises(EnvironmentUnusable):
        session.slots[0].run(items(2))
    again = Ensemble(EmulatedDevice())
    with opened(again) as session:
        check_results(again, session.slots[0], 2)


def test_an_interruption_breaks_nothing() -> None:
    calm = EmulatedDevice()
    ensemble = Ensemble(calm)
    with opened(ensemble) as session:
        session.prepare([2])
        for number in range(4):
            before = len(calm.log)
            calm.fail_at(number, Stop())
            with pytest.raises(Stop):
                session.slots[0].run(items(2))
            assert calm.log[before + number].name in (
                "device.enter",
                "graph.launch",
                "stream.record",
                "event.sync",
            )
            if calm.log[before + number].name == "event.sync":
                break
            check_results(ensemble, session.slots[0], 2, seed=number)


@pytest.mark.parametrize("room", range(200, 30000, 977))
def test_memory_that_ends_is_said_and_everything_given_back(room: int) -> None:
    device = EmulatedDevice(nbytes=room)
    ensemble = Ensemble(device)
    said = "out of memory"
    try:
        with opened(ensemble, max_batch=16) as session:
            for count in (16, 3, 1):
                check_results(ensemble, session.slots[1], count)
    except EnvironmentUnusable as error:
        said = str(error)
    assert "out of memory" in said
    assert device.open() == {}
    assert device.faults == []


def test_there_is_room_where_it_was_said_to_be() -> None:
    """The sizes of the test before reach from too little memory to enough."""
    with pytest.raises(EnvironmentUnusable, match="out of memory"):
        open_session(Ensemble(EmulatedDevice(nbytes=200)), max_batch=16)
    ensemble = Ensemble(EmulatedDevice(nbytes=29510))
    with opened(ensemble, max_batch=16) as session:
        check_results(ensemble, session.slots[1], 16)


# Closed, forked, and other threads


def test_a_closed_session_refuses_work_and_can_be_closed_again() -> None:
    device = EmulatedDevice()
    with opened(Ensemble(device)) as session:
        session.slots[0].run(items(1))
    for act in (
        lambda: session.slots[0].run(items(1)),
        lambda: session.slots[0].run_device({}, False),
        lambda: session.prepare([1]),
    ):
        with pytest.raises(UsageError, match="closed"):
            act()
    session.close()


def test_closing_waits_for_a_call_that_is_under_way() -> None:
    inside, go_on = threading.Event(), threading.Event()

    def wait(_: str, compute: Compute) -> Compute:
        def run(given: Tensors) -> Tensors:
            inside.set()
            assert go_on.wait(30)
            return compute(given)

        return run

    device = EmulatedDevice()
    ensemble = Ensemble(device, around=wait)
    go_on.set()
    with opened(ensemble) as session, ThreadPoolExecutor(2) as pool:
        session.prepare([2])
        inside.clear()
        go_on.clear()
        place = session.slots[0]
        running = pool.submit(lambda: place.run(items(2))["scores"].shape)
        assert inside.wait(30)
        closing = pool.submit(session.close)
        assert not closing.done()
        assert device.open()["graph"] == 2
        go_on.set()
        assert running.result(30) == (2, 2)
        closing.result(30)


def test_any_thread_may_use_and_close_a_session() -> None:
    device = EmulatedDevice()
    ensemble = Ensemble(device)
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other, ThreadPoolExecutor(1) as third:
        session = one.submit(open_session, ensemble).result(30)
        for pool in (other, third):
            pool.submit(check_results, ensemble, session.slots[0], 3).result(30)
        third.submit(session.close).result(30)
    assert device.faults == []
    assert device.open() == {}


def test_who_does_not_enter_the_device_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    device = EmulatedDevice()
    ensemble = Ensemble(device)
    session = open_session(ensemble)
    monkeypatch.setattr(EmulatedDevice, "enter", lambda _: None)
    with ThreadPoolExecutor(1) as pool, pytest.raises(EnvironmentUnusable, match="has not entered"):
        pool.submit(session.slots[0].run, items(1)).result(30)
    session.close()


def test_a_process_that_was_forked_is_told_so() -> None:
    device = EmulatedDevice()
    with opened(Ensemble(device)) as session:
        session.slots[0].run(items(1))
        device.forked = True
        before = len(device.log)
        for act in (
            lambda: session.slots[0].run(items(1)),
            lambda: session.prepare([4]),
            session.close,
        ):
            with pytest.raises(UsageError, match="forked"):
                act()
        assert len(device.log) == before, "a child touches what is its parent's"
        device.forked = False
        session.slots[0].run(items(1))


def test_many_runs_open_nothing_more() -> None:
    device = EmulatedDevice()
    ensemble = Ensemble(device)
    with opened(ensemble) as session:
        session.prepare([1, 2, 3, 5])
        before = device.open()
        assert {k: n for k, n in session.open_resources().items() if n} == before
        theirs = {name: TheirArray(device, array) for name, array in items(3).items()}
        session.slots[0].run_device(theirs, False)
        more = device.open()
        for number in range(300):
            session.slots[number % 2].run(items(1 + number % 5))
            for array in session.slots[0].run_device(theirs, True).values():
                array.close()
        assert device.open() == more
