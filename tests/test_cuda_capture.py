"""What a session on the emulated GPU captures, launches and shares: the sequences of calls, and what runs together."""

from __future__ import annotations

import gc
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from cuda_sessions import MERGED, STREAMS, captures, check_results, count_calls, live, open_session, opened
from emulated_cuda import Call, EmulatedDevice
from emulated_engine import Compute
from emulated_ensemble import INPUTS, OUTPUTS, Ensemble, Tensors, items, scratch_of
from emulated_work import Misuse

from vsa_rt.engines.backend import allocate
from vsa_rt.engines.cuda import lane, slot
from vsa_rt.engines.cuda.session import CudaSession
from vsa_rt.errors import EnvironmentUnusable, UsageError


@pytest.fixture
def device() -> EmulatedDevice:
    """No thread has entered it: that is the session's to do."""
    return EmulatedDevice()


# What is captured


def check_captures(log: list[Call], stages: int) -> None:
    """Every capture holds the copies in, one run of each stage and the copies out, and nothing else."""
    found = captures(log)
    for calls in found:
        assert calls[0].name == "device.capture"
        assert calls[-1].name == "capture.end"
        assert len({call.thread for call in calls}) == 1
        inside = [call for call in calls[1:-1] if call.name not in ("stream.record", "stream.wait")]
        assert all(call.captured for call in inside), "something inside is not captured"
        counts = count_calls(inside)
        assert counts == {
            "copy pinned to memory": len(INPUTS),
            "context.enqueue": stages,
            "copy memory to pinned": len(OUTPUTS),
        }, "another amount of work is captured"
        order = [call.facts["kinds"] if call.name == "stream.copy" else "run" for call in inside]
        assert order == sorted(order, key=["pinned to memory", "run", "memory to pinned"].index)
        batches = {call.facts["batch"] for call in inside if call.name == "context.enqueue"}
        assert len(batches) == 1
        rows = [array.nbytes for array in allocate((*INPUTS, *OUTPUTS), batches.pop()).values()]
        copied = [call.facts["nbytes"] for call in inside if call.name == "stream.copy"]
        assert sorted(copied) == sorted(rows), "other bytes are copied"
    outside = set(map(id, itertools.chain.from_iterable(found)))
    assert not any(call.captured for call in log if id(call) not in outside), "captured outside of a capture"


@pytest.mark.parametrize("division", [MERGED, STREAMS], ids=["merged", "streams"])
def test_a_capture_holds_exactly_the_work_of_a_batch(device: EmulatedDevice, division: Any) -> None:
    live(device, slots=2, division=division)
    check_captures(device.log, 1 if division == MERGED else 3)
    assert len(captures(device.log)) == 2 * 4, "a graph for each slot and bucket"


@pytest.mark.parametrize("forgotten", ["copy pinned to memory", "context.enqueue", "copy memory to pinned"])
def test_a_capture_of_less_work_is_caught(forgotten: str) -> None:
    calm = EmulatedDevice()
    live(calm)
    number = next(i for i, c in enumerate(calm.log) if c.captured and count_calls([c]) == {forgotten: 1})
    log = [c for i, c in enumerate(calm.log) if i != number]
    with pytest.raises(AssertionError, match="another amount of work"):
        check_captures(log, 3)


def test_captured_work_outside_of_a_capture_is_caught() -> None:
    device = EmulatedDevice()
    live(device)
    first = next(i for i, c in enumerate(device.log) if c.captured)
    end = next(i for i, c in enumerate(device.log) if c.name == "capture.end")
    log = device.log
    for moved in (
        [*log[: first - 1], log[first], log[first - 1], *log[first + 1 :]],
        [*log[: end - 1], log[end], log[end - 1], *log[end + 1 :]],
    ):
        with pytest.raises(AssertionError, match="captured"):
            check_captures(moved, 3)


def test_a_batch_is_one_launch_and_one_wait_and_no_other_work(device: EmulatedDevice) -> None:
    with opened(Ensemble(device), division=STREAMS) as session:
        session.prepare([1, 2, 3, 4, 5])
        for count, place in itertools.product(range(1, 6), session.slots):
            before = len(device.log)
            place.run(items(count))
            work = [name for name in device.names(before) if name != "device.enter"]
            assert work == ["graph.launch", "stream.record", "event.sync"]


def test_a_bucket_is_captured_when_it_is_first_used_and_only_then(device: EmulatedDevice) -> None:
    with opened(Ensemble(device), max_batch=8, slots=2) as session:
        assert captures(device.log) == []
        for count, more in ((3, 1), (4, 0), (1, 1), (5, 1), (8, 0), (7, 0), (2, 1)):
            before = len(captures(device.log))
            session.slots[0].run(items(count))
            assert len(captures(device.log)) == before + more
        session.prepare([8, 3])
        before = len(captures(device.log))
        session.slots[1].run(items(4))
        assert len(captures(device.log)) == before


def silent_without(number: int, division: Any) -> bool:
    """Whether a session's life looks all right although it left a call out."""
    device = EmulatedDevice()
    device.left_out = number
    try:
        live(device, division=division)
    except (AssertionError, Misuse, EnvironmentUnusable, AttributeError):
        return False
    return True


#: Calls that return nothing, so that a session could forget them without an error of its own.
FORGETTABLE = (
    "stream.record",
    "stream.wait",
    "stream.copy",
    "event.sync",
    "graph.launch",
    "context.set_batch",
    "context.use_scratch",
    "context.bind",
    "context.enqueue",
)


@pytest.mark.parametrize("division", [MERGED, STREAMS], ids=["merged", "streams"])
def test_no_call_can_be_left_out(division: Any) -> None:
    """But for copies and runs that warm a bucket up before it is captured: their results are nobody's."""
    calm = EmulatedDevice()
    live(calm, division=division)
    captured = {id(call) for calls in captures(calm.log) for call in calls}
    warming = True
    needless: list[str] = []
    for number, call in enumerate(calm.log):
        if call.name in ("device.capture", "context.set_batch", "context.use_scratch"):
            warming = call.name != "device.capture"
        forgettable = call.name in FORGETTABLE or call.name.endswith(".close")
        spare = (
            warming
            and id(call) not in captured
            and call.name in ("stream.copy", "stream.record", "event.sync")
        )
        if forgettable and not spare and silent_without(number, division):
            needless.append(f"{number} {call.name} {call.subject}")
    assert needless == []


# Addresses and scratch memory


def test_addresses_are_bound_once_and_stay(device: EmulatedDevice) -> None:
    ensemble = Ensemble(device)
    with opened(ensemble) as session:
        session.prepare([5, 2])
        before = len(device.log)
        for count in (1, 2, 5, 2, 1, 5):
            for place in session.slots:
                place.run(items(count))
        prepared = [call for call in device.log[before:] if call.name == "context.bind"]
        bound: dict[tuple[str, str], set[int]] = {}
        for call in device.log:
            if call.name == "context.bind":
                bound.setdefault((call.subject, call.facts["tensor"]), set()).add(call.facts["address"])
        assert all(len(addresses) == 1 for addresses in bound.values())
        # Of the buckets that were prepared, none; of the one that was not, once for each slot.
        ports = [port for name in ("a", "b", "head") for port in ensemble.engines[name].ports]
        assert len(prepared) == 2 * len(ports)


def test_who_binds_anew_after_the_capture_is_caught(
    device: EmulatedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = lane.Lane.launch

    def rebind(self: lane.Lane, transfers: bool) -> None:
        for context in self._contexts:
            context.bind("image", self._place.device.memory(4096).address)
            break
        launch(self, transfers)

    monkeypatch.setattr(lane.Lane, "launch", rebind)
    with pytest.raises(Misuse, match="which graph 1 has captured"), opened(Ensemble(device)) as session:
        session.slots[0].run(items(2))
    assert "changes" in device.faults[0]


def scratches(log: list[Call]) -> dict[int, list[str]]:
    """Address of scratch memory to the contexts that have it."""
    found: dict[int, list[str]] = {}
    for call in log:
        if call.name == "context.use_scratch" and call.facts["address"] is not None:
            found.setdefault(call.facts["address"], []).append(call.subject)
    return found


def test_buckets_of_a_slot_share_scratch_memory_and_slots_do_not(device: EmulatedDevice) -> None:
    ensemble = Ensemble(device)
    with opened(ensemble, max_batch=8) as session:
        session.prepare(range(1, 9))
        found = scratches(device.log)
        # Two streams in each of two slots; the first backbone and the head follow each other on one.
        assert sorted(len(contexts) for contexts in found.values()) == [4, 4, 8, 8]
        sizes = [c.facts["nbytes"] for c in device.log if c.name == "device.memory"]
        assert sizes.count(scratch_of(8)) == 4


def together(ensemble: Ensemble, session: CudaSession, meet: threading.Barrier) -> list[Tensors]:
    """Run one batch on each of two slots so that both are under way at the same time."""

    def run(number: int) -> Tensors:
        found = session.slots[number].run(items(3, number))
        return {name: array.copy() for name, array in found.items()}

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(run, number) for number in range(2)]
        try:
            found = [future.result(timeout=60) for future in futures]
        finally:
            meet.abort()
    for number, outputs in enumerate(found):
        wanted = ensemble.reference(items(3, number))
        assert all(np.array_equal(outputs[name], wanted[name]) for name in wanted)
    return found


class Meeting:
    """Engines that wait for those of another call once it is asked for."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(2, timeout=10)
        self.on = False

    def around(self, name: str, compute: Compute) -> Compute:
        def run(given: Tensors) -> Tensors:
            if self.on and name in ("merged", "a"):
                self.barrier.wait()
            return compute(given)

        return run


@pytest.mark.parametrize("division", [MERGED, STREAMS], ids=["merged", "streams"])
def test_two_slots_work_at_the_same_time(device: EmulatedDevice, division: Any) -> None:
    meeting = Meeting()
    ensemble = Ensemble(device, around=meeting.around)
    with opened(ensemble, division=division) as session:
        session.prepare([3])
        meeting.on = True
        together(ensemble, session, meeting.barrier)
        assert session.notes == []


def test_slots_that_wait_for_each_other_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    lock, run = threading.Lock(), slot.CudaSlot.run

    def one_by_one(self: slot.CudaSlot, inputs: Any) -> Any:
        with lock:
            return run(self, inputs)

    meeting = Meeting()
    meeting.barrier = threading.Barrier(2, timeout=0.5)
    ensemble = Ensemble(EmulatedDevice(), around=meeting.around)
    session = open_session(ensemble)
    session.prepare([3])
    meeting.on = True
    monkeypatch.setattr(slot.CudaSlot, "run", one_by_one)
    with pytest.raises(EnvironmentUnusable, match="device failed"):
        together(ensemble, session, meeting.barrier)
    session.close()


def test_scratch_memory_that_two_slots_share_is_caught(
    device: EmulatedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = slot.CudaSlot._make_place
    shared: list[Any] = []

    def share(self: slot.CudaSlot) -> Any:
        place = made(self)
        shared.append(place.scratch)
        object.__setattr__(place, "scratch", shared[0])
        return place

    monkeypatch.setattr(slot.CudaSlot, "_make_place", share)
    meeting = Meeting()
    meeting.barrier = threading.Barrier(2, timeout=1)
    ensemble = Ensemble(device, around=meeting.around)
    session = open_session(ensemble, division=MERGED)
    session.prepare([3])
    meeting.on = True
    with pytest.raises(EnvironmentUnusable):
        together(ensemble, session, meeting.barrier)
    session.close()
    assert any("a race" in fault for fault in device.faults)


def ask_twice(device: EmulatedDevice, patience: float = 30) -> None:
    """Call a slot while a call of it is under way."""
    inside, go_on = threading.Event(), threading.Event()
    inside.set()

    def wait(_: str, compute: Compute) -> Compute:
        def run(given: Tensors) -> Tensors:
            if not inside.is_set():
                inside.set()
                go_on.wait(patience)
            return compute(given)

        return run

    ensemble = Ensemble(device, ("merged",), around=wait)
    with opened(ensemble, slots=1, division={}) as session, ThreadPoolExecutor(1) as pool:
        session.prepare([2])
        inside.clear()
        place = session.slots[0]
        first = pool.submit(lambda: {n: a.copy() for n, a in place.run(items(2)).items()})
        assert inside.wait(30)
        with pytest.raises(UsageError, match="one caller at a time"):
            place.run(items(2, seed=1))
        go_on.set()
        assert np.array_equal(first.result(60)["scores"], ensemble.reference(items(2))["scores"])
        check_results(ensemble, place, 2, seed=1)


def test_a_slot_in_use_refuses_a_second_caller(device: EmulatedDevice) -> None:
    ask_twice(device)


def test_a_slot_that_takes_two_callers_is_caught(
    device: EmulatedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slot.CudaSlot, "_take", lambda self, running: self._shared.device.enter())
    monkeypatch.setattr(slot.CudaSlot, "_give", lambda _: None)
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        ask_twice(device, patience=0.5)


# Streams


def order_of(device: EmulatedDevice, **options: Any) -> dict[str, set[str]]:
    """Engine to the engines that a captured run of it waits for."""
    ensemble = Ensemble(device, **options)
    with opened(ensemble, division=STREAMS, slots=1) as session:
        session.prepare([2])
        (graph,) = device.things("graph")
        runs = {node: node.action.alone[0].engine.title for node in graph.nodes if node.action.alone}
        return {name: {runs[o] for o in node.before() if o in runs} for node, name in runs.items()}


def test_backbones_wait_for_what_they_read_and_for_nothing_else() -> None:
    assert order_of(EmulatedDevice()) == {"a": set(), "b": set(), "head": {"a", "b"}}
    assert order_of(EmulatedDevice(), reads=True) == {"a": set(), "b": {"a"}, "head": {"a", "b"}}


def test_captures_of_several_threads_come_one_after_the_other(
    device: EmulatedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rush(device: EmulatedDevice) -> None:
        ensemble = Ensemble(device)
        with opened(ensemble, slots=4, max_batch=32) as session, ThreadPoolExecutor(4) as pool:
            start = threading.Barrier(4, timeout=30)

            def run(number: int) -> None:
                start.wait()
                for count in (1, 2, 3, 8, 9, 32):
                    check_results(ensemble, session.slots[number], count, number)

            for future in [pool.submit(run, number) for number in range(4)]:
                future.result(60)

    rush(device)
    assert device.most_captures == 1
    # Without the lock, captures of two threads meet sooner or later.
    begun = EmulatedDevice.capture
    pair = threading.Barrier(2, timeout=30)

    def slow(self: EmulatedDevice, stream: Any) -> Any:
        made = begun(self, stream)
        with suppress(threading.BrokenBarrierError):
            pair.wait()
            pair.abort()  # once is enough
        return made

    unlocked = EmulatedDevice()
    monkeypatch.setattr(EmulatedDevice, "capture", slow)
    monkeypatch.setattr("vsa_rt.engines.cuda.gate.Gate.__enter__", lambda _: None)
    monkeypatch.setattr("vsa_rt.engines.cuda.gate.Gate.__exit__", lambda *_: None)
    rush(unlocked)
    assert unlocked.most_captures > 1


@pytest.mark.parametrize("collects", [True, False])
def test_the_collector_frees_nothing_of_others_in_a_capture(
    device: EmulatedDevice, monkeypatch: pytest.MonkeyPatch, collects: bool
) -> None:
    """Another library's arrays on the GPU, freed in the capturing thread, would spoil it. After it all is as it was."""
    seen: list[bool] = []
    honest = lane.Lane.enqueue

    def looking(self: lane.Lane, transfers: bool) -> None:
        if device.things("capture"):
            seen.append(gc.isenabled())
        honest(self, transfers)

    monkeypatch.setattr(lane.Lane, "enqueue", looking)
    before = gc.isenabled()
    try:
        (gc.enable if collects else gc.disable)()
        ensemble = Ensemble(device)
        with opened(ensemble) as session:
            check_results(ensemble, session.slots[0], 2)
            assert gc.isenabled() is collects
    finally:
        (gc.enable if before else gc.disable)()
    assert seen
    assert not any(seen)


def spoil(device: EmulatedDevice, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Let the first captures be broken, as another library may."""
    begin = EmulatedDevice.capture
    left = itertools.count()

    def broken(self: EmulatedDevice, stream: Any) -> Any:
        made = begin(self, stream)
        made.broken = next(left) < times
        return made

    monkeypatch.setattr(EmulatedDevice, "capture", broken)


@pytest.mark.parametrize(("times", "begun"), [(0, 1), (1, 2), (2, 2)])
def test_a_capture_that_was_spoilt_is_tried_once_more(
    device: EmulatedDevice, monkeypatch: pytest.MonkeyPatch, times: int, begun: int
) -> None:
    spoil(device, monkeypatch, times)
    ensemble = Ensemble(device)
    with opened(ensemble, slots=1) as session:
        check_results(ensemble, session.slots[0], 2)
        assert device.names().count("device.capture") == begun
        assert device.open().get("graph", 0) == (times < 2)
        assert ["the capture is invalid" in note for note in session.notes] == [True] * (times == 2)
