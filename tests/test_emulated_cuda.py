"""The emulated GPU refuses what a driver would refuse, and whoever forgets to wait computes nonsense on it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from emulated_cuda import EmulatedDevice
from emulated_engine import EmulatedContext, EmulatedEngine
from emulated_memory import EmulatedMemory, TheirArray
from emulated_streams import EmulatedStream
from emulated_work import Misuse
from numpy.typing import NDArray

from vsa_rt.engines.cuda import seam
from vsa_rt.errors import EnvironmentUnusable, UsageError

PORTS = (seam.Port("x", True, "float32", (None, 4)), seam.Port("y", False, "float32", (None, 4)))
NBYTES = 2 * 4 * 4


@pytest.fixture
def device() -> EmulatedDevice:
    """Entered by this thread."""
    made = EmulatedDevice()
    made.enter()
    return made


@pytest.fixture
def loose() -> EmulatedDevice:
    """One that lets work race."""
    made = EmulatedDevice(lawful=False)
    made.enter()
    return made


def adder(device: EmulatedDevice, more: float = 1, **options: Any) -> EmulatedEngine:
    """An engine that adds."""
    return EmulatedEngine(device, PORTS, lambda given: {"y": given["x"] + more}, **options)


def ready(engine: EmulatedEngine, x: int, y: int, scratch: EmulatedMemory | None = None) -> EmulatedContext:
    """A context for batches of two, bound."""
    context = engine.context()
    context.set_batch(2)
    if scratch is not None:
        context.use_scratch(scratch)
    context.bind("x", x)
    context.bind("y", y)
    return context


class Bench:
    """A stream, pinned memory in and out, device memory in, between and out, and two engines of which the second takes
    what the first gives."""

    def __init__(self, device: EmulatedDevice) -> None:
        self.device = device
        self.stream, self.other = device.stream(), device.stream()
        self.fork, self.join = device.event(), device.event()
        self.taken, self.given = device.pinned(NBYTES), device.pinned(NBYTES)
        self.x, self.between, self.y = (device.memory(NBYTES) for _ in range(3))
        self.engines = [adder(device, 1, name="first"), adder(device, 10, name="second")]
        self.first = ready(self.engines[0], self.x.address, self.between.address)
        self.second = ready(self.engines[1], self.between.address, self.y.address)

    def fill(self, value: float) -> None:
        self.taken.array("float32", (2, 4))[:] = value

    def result(self) -> NDArray[Any]:
        return self.given.array("float32", (2, 4)).copy()

    def work(self, *, fork: bool = True, join: bool = True) -> None:
        """In, the first engine on the other stream, the second one on the stream, out."""
        self.stream.copy(self.x.address, self.taken.address, NBYTES)
        self.stream.record(self.fork)
        if fork:
            self.other.wait(self.fork)
        self.first.enqueue(self.other)
        self.other.record(self.join)
        if join:
            self.stream.wait(self.join)
        self.second.enqueue(self.stream)
        self.stream.copy(self.given.address, self.y.address, NBYTES)

    def close(self) -> None:
        things: list[seam.Closable] = [self.first, self.second, *self.engines]
        things += [self.stream, self.other, self.fork, self.join]
        things += [self.taken, self.given, self.x, self.between, self.y]
        for thing in things:
            thing.close()


@pytest.fixture
def bench(device: EmulatedDevice) -> Iterator[Bench]:
    """What most tests need; nothing may be wrong at its end but what a test took out of the list."""
    made = Bench(device)
    yield made
    made.close()
    assert device.faults == []
    assert device.open() == {}


def test_it_is_what_the_session_asks_for(device: EmulatedDevice) -> None:
    one: seam.Device = device
    stream: seam.Stream = device.stream()
    event: seam.Event = device.event()
    pinned: seam.Pinned = device.pinned(1)
    engine: seam.Engine = adder(device)
    context: seam.Context = engine.context()
    capture: seam.Capture = device.capture(stream)
    graph: seam.Graph = capture.end()
    assert one.facts.capability == "sm_87"
    assert {type(o).__name__ for o in (event, pinned, context, graph)} >= {"EmulatedGraph", "EmulatedContext"}


def test_work_is_done_when_it_is_waited_for_and_not_before(bench: Bench) -> None:
    bench.fill(5)
    bench.work()
    assert np.isnan(bench.result()).all()
    bench.fill(6)  # too early: the copy has not happened yet
    bench.stream.sync()
    assert (bench.result() == 17).all()


def test_an_event_waits_for_what_came_before_it_alone(bench: Bench) -> None:
    bench.fill(5)
    bench.stream.copy(bench.x.address, bench.taken.address, NBYTES)
    bench.stream.record(bench.fork)
    bench.stream.copy(bench.given.address, bench.x.address, NBYTES)
    bench.fork.sync()
    assert (bench.x.array("float32", (2, 4)) == 5).all()
    assert np.isnan(bench.result()).all()
    bench.stream.sync()
    assert (bench.result() == 5).all()


@pytest.mark.parametrize("forgotten", ["fork", "join"])
def test_who_forgets_an_event_computes_nonsense(loose: EmulatedDevice, forgotten: str) -> None:
    bench = Bench(loose)
    bench.fill(5)
    bench.work(**{forgotten: False})
    bench.stream.sync()
    assert not (bench.result() == 16).any()


@pytest.mark.parametrize("forgotten", ["fork", "join"])
def test_who_forgets_an_event_is_told_of_the_race(device: EmulatedDevice, forgotten: str) -> None:
    bench = Bench(device)
    with pytest.raises(Misuse, match="race"):
        bench.work(**{forgotten: False})
    assert "neither waits for the other" in device.faults[0]


def test_runs_that_share_scratch_memory_must_wait_for_each_other(device: EmulatedDevice) -> None:
    scratch, tensors = device.memory(512), [device.memory(NBYTES) for _ in range(4)]
    engine = adder(device, scratch=lambda batch: 256 * batch)
    one, other = (
        ready(engine, x.address, y.address, scratch)
        for x, y in ((tensors[0], tensors[1]), (tensors[2], tensors[3]))
    )
    streams = [device.stream(), device.stream()]
    one.enqueue(streams[0])
    with pytest.raises(Misuse, match="touch the bytes"):
        other.enqueue(streams[1])
    streams[0].sync()
    other.enqueue(streams[1])  # after the first is done, it may have it


def test_one_context_does_not_run_twice_at_the_same_time(bench: Bench) -> None:
    bench.first.enqueue(bench.stream)
    with pytest.raises(Misuse, match="same context"):
        bench.first.enqueue(bench.other)
    bench.device.faults.clear()
    bench.stream.sync()


def test_scratch_memory_does_not_keep_what_lies_in_it(device: EmulatedDevice) -> None:
    scratch, x, y = device.memory(512), device.memory(NBYTES), device.memory(NBYTES)
    scratch.data[:] = 0
    context, stream = (
        ready(adder(device, scratch=lambda _: 256), x.address, y.address, scratch),
        device.stream(),
    )
    context.enqueue(stream)
    stream.sync()
    assert (scratch.data[:256] != 0).all()
    assert (scratch.data[256:] == 0).all()


def test_an_engine_needs_its_scratch_memory_its_batch_and_every_address(device: EmulatedDevice) -> None:
    memory, small, stream = device.memory(4096), device.memory(256), device.stream()
    engine = adder(device, scratch=lambda batch: 256 * batch, batches=(1, 4))
    context = engine.context()
    with pytest.raises(Misuse, match="has no batch"):
        context.enqueue(stream)
    with pytest.raises(EnvironmentUnusable, match="profile has 1 to 4"):
        context.set_batch(5)
    context.set_batch(2)
    with pytest.raises(Misuse, match="without an address of x, y"):
        context.enqueue(stream)
    context.bind("x", memory.address)
    context.bind("y", memory.address + 256)
    with pytest.raises(Misuse, match="after addresses were bound"):
        context.set_batch(3)
    with pytest.raises(Misuse, match="0 bytes of scratch memory and needs 512"):
        context.enqueue(stream)
    context.use_scratch(small)
    with pytest.raises(Misuse, match="256 bytes of scratch memory and needs 512"):
        context.enqueue(stream)
    context.use_scratch(memory)
    with pytest.raises(Misuse, match="overlap"):
        context.enqueue(stream)


def test_an_address_must_be_the_devices_and_large_enough_and_aligned(device: EmulatedDevice) -> None:
    memory, pinned = device.memory(NBYTES + 32), device.pinned(NBYTES)
    context = adder(device).context()
    context.set_batch(2)
    elsewhere = np.zeros(8, np.float32)
    for address, said in (
        (elsewhere.ctypes.data, "is no memory"),
        (memory.address + 256, "is no memory"),
        (memory.address + 32 + 4, "4 bytes too early"),
        (memory.address + 32, "not aligned"),
        (pinned.address, "lies on the host"),
    ):
        with pytest.raises(Misuse, match=said):
            context.bind("x", address)
    with pytest.raises(Misuse, match="no tensor 'z'"):
        context.bind("z", memory.address)
    memory.close()
    with pytest.raises(Misuse, match="after it was closed"):
        context.bind("x", memory.address)


def test_pinned_memory_is_the_devices_where_both_share_it() -> None:
    device = EmulatedDevice(integrated=True)
    device.enter()
    pinned, stream = device.pinned(512), device.stream()
    context = ready(adder(device), pinned.address, pinned.address + 256)
    pinned.array("float32", (2, 4))[:] = 3
    context.enqueue(stream)
    stream.sync()
    assert (pinned.array("float32", (2, 4), 256) == 4).all()


def test_a_copy_outside_of_memory_is_refused(device: EmulatedDevice) -> None:
    stream, memory = device.stream(), device.memory(64)
    elsewhere = np.zeros(64, np.uint8)
    for to, source, nbytes, said in (
        (memory.address, elsewhere.ctypes.data, 64, "is no memory"),
        (memory.address, memory.address + 32, 33, "1 bytes too early"),
        (memory.address, memory.address + 32, 32, ""),
        (memory.address, memory.address + 16, 32, "onto itself"),
    ):
        if said:
            with pytest.raises(Misuse, match=said):
                stream.copy(to, source, nbytes)
        else:
            stream.copy(to, source, nbytes)


def test_what_is_closed_is_poisoned_and_cannot_be_used(device: EmulatedDevice) -> None:
    pinned, stream, event = device.pinned(16), device.stream(), device.event()
    seen = pinned.array("float32", (4,))
    seen[:] = 1
    for thing in (pinned, stream, event):
        thing.close()
        thing.close()  # a second time does nothing
    assert np.isnan(seen).all()
    assert device.names().count("pinned.close") == 1
    for act in (
        lambda: pinned.array("float32", (4,)),
        stream.sync,
        lambda: stream.record(device.event()),
        event.sync,
        lambda: device.stream().wait(event),
    ):
        with pytest.raises(Misuse, match="after it was closed"):
            act()
    assert device.open() == {"stream": 1, "event": 1}


def test_what_work_needs_is_not_closed_under_it(device: EmulatedDevice) -> None:
    bench = Bench(device)
    bench.work()
    for thing in (bench.x, bench.taken, bench.first, bench.stream, bench.engines[1]):
        before = len(device.faults)
        with pytest.raises(Misuse, match="is closed while"):
            thing.close()
        assert len(device.faults) == before + 1
    with pytest.raises(EnvironmentUnusable, match="used after it was closed"):
        bench.other.sync()


def captured(bench: Bench) -> Any:
    """The bench's work as a graph."""
    bench.first.enqueue(bench.stream)
    bench.second.enqueue(bench.stream)
    bench.stream.sync()
    capture = bench.device.capture(bench.stream)
    bench.work()
    return capture.end()


def test_a_graph_does_all_of_the_captured_work_and_the_capture_none(bench: Bench) -> None:
    runs = bench.engines[0].runs
    graph = captured(bench)
    assert len(runs) == 1
    for value in (5, 7):
        bench.fill(value)
        graph.launch(bench.stream)
        bench.stream.sync()
        assert (bench.result() == value + 11).all()
    assert len(runs) == 3
    assert [c.captured for c in bench.device.log if c.name == "context.enqueue"] == [False, False, True, True]
    graph.close()


def test_a_graph_waits_for_its_own_last_launch(bench: Bench) -> None:
    graph = captured(bench)
    bench.fill(5)
    graph.launch(bench.stream)
    graph.launch(bench.other)  # no race: the driver orders them
    bench.other.sync()
    assert (bench.result() == 16).all()
    graph.close()


def test_launches_of_two_graphs_that_touch_the_same_bytes_are_a_race(device: EmulatedDevice) -> None:
    bench = Bench(device)
    graphs = [captured(bench), captured(bench)]
    graphs[0].launch(bench.stream)
    with pytest.raises(Misuse, match="a race"):
        graphs[1].launch(bench.other)


def test_a_stream_that_leaves_a_capture_without_a_join_fails_it(device: EmulatedDevice) -> None:
    bench = Bench(device)
    bench.first.enqueue(bench.stream)
    bench.stream.sync()
    capture = device.capture(bench.stream)
    bench.stream.record(bench.fork)
    bench.other.wait(bench.fork)
    bench.first.enqueue(bench.other)
    with pytest.raises(Misuse, match="stream 2 left the capture without a join"):
        capture.end()
    bench.other.sync()  # both are out of it
    assert "capture" not in device.open()


def test_work_on_a_stream_that_was_not_forked_is_not_in_the_graph(bench: Bench) -> None:
    bench.first.enqueue(bench.stream)
    bench.stream.sync()
    capture = bench.device.capture(bench.stream)
    bench.first.enqueue(bench.other)
    graph = capture.end()
    assert graph.nodes == []
    assert [c.captured for c in bench.device.log if c.name == "context.enqueue"] == [False, False]
    bench.other.sync()
    graph.close()


@pytest.mark.parametrize(
    "what", ["memory", "pinned", "context", "sync", "event", "close", "capture", "outside"]
)
def test_what_cannot_be_captured_breaks_the_capture(device: EmulatedDevice, what: str) -> None:
    bench = Bench(device)
    bench.other.copy(bench.x.address, bench.taken.address, NBYTES)
    bench.other.record(bench.join)
    spare = device.memory(16)
    capture = device.capture(bench.stream)
    acts: dict[str, Callable[[], object]] = {
        "memory": lambda: device.memory(16),
        "pinned": lambda: device.pinned(16),
        "context": bench.engines[0].context,
        "sync": bench.other.sync,
        "event": bench.fork.sync,
        "close": spare.close,
        "capture": lambda: device.capture(bench.other),
        "outside": lambda: bench.stream.wait(bench.join),
    }
    with pytest.raises(Misuse):
        acts[what]()
    with pytest.raises(EnvironmentUnusable, match="invalid"):
        capture.end()


def test_whoever_waits_for_the_device_waits_for_every_stream(bench: Bench) -> None:
    bench.work()
    assert bench.device.work.pending()
    bench.device.sync()
    assert bench.device.work.pending() == []


def test_nobody_waits_for_the_device_during_a_capture_not_even_another_thread(bench: Bench) -> None:
    capture = bench.device.capture(bench.stream)
    refused: list[Misuse] = []

    def wait() -> None:
        bench.device.enter()
        try:
            bench.device.sync()
        except Misuse as error:
            refused.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join()
    assert "during a capture" in str(refused)
    assert bench.device.faults.pop() == str(refused[0])
    with pytest.raises(EnvironmentUnusable, match="invalid"):
        capture.end()


def test_another_thread_may_allocate_during_a_capture(bench: Bench) -> None:
    capture = bench.device.capture(bench.stream)

    def allocate() -> None:
        bench.device.enter()
        bench.device.memory(16).close()

    thread = threading.Thread(target=allocate)
    thread.start()
    thread.join()
    capture.end().close()


def test_captures_that_are_open_together_are_counted(bench: Bench) -> None:
    capture = bench.device.capture(bench.stream)

    def too() -> None:
        bench.device.enter()
        bench.device.capture(bench.other).end().close()

    thread = threading.Thread(target=too)
    thread.start()
    thread.join()
    capture.end().close()
    assert bench.device.most_captures == 2


def test_a_context_is_captured_after_it_ran_once_and_only_if_it_can_be(device: EmulatedDevice) -> None:
    x, y, stream = device.memory(NBYTES), device.memory(NBYTES), device.stream()
    for engine, runs_before, said in (
        (adder(device), False, "before it ran once"),
        (adder(device, capturable=False), True, "cannot be"),
    ):
        context = ready(engine, x.address, y.address)
        assert context.capturable(stream) is not runs_before
        if runs_before:
            context.enqueue(stream)
            stream.sync()
        capture = device.capture(stream)
        with pytest.raises(Misuse, match=said):
            context.enqueue(stream)
        capture.abandon()
    assert device.open().get("capture") is None


def test_an_engine_may_break_a_capture_that_it_said_it_could_be_part_of(device: EmulatedDevice) -> None:
    x, y, stream = device.memory(NBYTES), device.memory(NBYTES), device.stream()
    context = ready(adder(device, breaks_capture=True), x.address, y.address)
    context.enqueue(stream)
    stream.sync()
    capture = device.capture(stream)
    context.enqueue(stream)
    with pytest.raises(EnvironmentUnusable, match="invalid"):
        capture.end()
    assert device.faults == []


def test_addresses_do_not_change_after_a_capture(device: EmulatedDevice) -> None:
    bench = Bench(device)
    graph = captured(bench)
    elsewhere = device.memory(NBYTES)
    bench.first.bind("x", bench.x.address)  # the same is no change
    with pytest.raises(Misuse, match=r"address of 'x' of context 1 .* changes, which graph 1 has captured"):
        bench.first.bind("x", elsewhere.address)
    with pytest.raises(Misuse, match="scratch memory of"):
        bench.first.use_scratch(elsewhere)
    with pytest.raises(Misuse, match="batch of"):
        bench.first.set_batch(2)
    graph.close()
    bench.first.bind("x", elsewhere.address)


def test_a_graph_is_not_launched_over_what_was_closed(device: EmulatedDevice) -> None:
    for closed, said in (
        ("first", "runs after it was closed"),
        ("between", "memory 2 is used after it was closed"),
    ):
        made = EmulatedDevice()
        made.enter()
        bench = Bench(made)
        graph = captured(bench)
        getattr(bench, closed).close()
        with pytest.raises(Misuse, match=said):
            graph.launch(bench.stream)
    graph.close()
    with pytest.raises(Misuse, match="after it was closed"):
        graph.launch(bench.stream)


def test_an_engine_outlives_its_contexts(device: EmulatedDevice) -> None:
    engine = adder(device)
    engine.context()
    with pytest.raises(Misuse, match="its contexts are open"):
        engine.close()


def test_a_thread_enters_the_device_before_it_uses_it(device: EmulatedDevice) -> None:
    said: list[str] = []

    def use() -> None:
        try:
            device.stream()
        except Misuse as error:
            said.append(str(error))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert said == ["device.stream in a thread that has not entered the device"]


def test_a_process_that_was_forked_does_not_enter(device: EmulatedDevice) -> None:
    device.forked = True
    with pytest.raises(UsageError, match="forked"):
        device.enter()


def test_memory_ends(device: EmulatedDevice) -> None:
    small = EmulatedDevice(nbytes=100)
    small.enter()
    kept = small.memory(60)
    with pytest.raises(EnvironmentUnusable, match="out of memory"):
        small.memory(60)
    kept.close()
    small.memory(60)
    assert small.faults == []


def test_any_call_can_be_made_to_fail() -> None:
    def whole(device: EmulatedDevice) -> Bench:
        device.enter()
        bench = Bench(device)
        bench.work()
        bench.stream.sync()
        bench.close()
        return bench

    calm = EmulatedDevice()
    whole(calm)
    names = calm.names()
    assert {
        "device.enter",
        "device.memory",
        "context.bind",
        "stream.copy",
        "stream.sync",
        "pinned.close",
    } <= set(names)
    for number in range(len(names)):
        device = EmulatedDevice()
        device.fail_at(number, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            whole(device)
        assert device.names() == names[: number + 1]
        assert device.spent


def test_a_call_that_is_left_out_does_nothing(device: EmulatedDevice) -> None:
    bench = Bench(device)
    bench.fill(5)
    bench.stream.copy(bench.x.address, bench.taken.address, NBYTES)
    device.left_out = len(device.log)
    bench.stream.sync()
    assert np.isnan(bench.x.array("float32", (2, 4))).all()
    bench.stream.sync()
    assert (bench.x.array("float32", (2, 4)) == 5).all()
    device.left_out = len(device.log)
    bench.given.close()
    bench.given.array("float32", (2, 4))
    assert device.open()["pinned"] == 2
    device.left_out = len(device.log)
    bench.first.enqueue(bench.stream)
    bench.stream.sync()
    assert bench.engines[0].runs == []


def test_a_failure_that_sticks_leaves_nothing_but_closing(device: EmulatedDevice) -> None:
    bench = Bench(device)
    bench.work()
    device.fail_at(0, sticky=True)
    with pytest.raises(EnvironmentUnusable, match="asked for"):
        bench.stream.sync()
    for act in (bench.other.sync, device.event, lambda: device.memory(16), bench.work):
        with pytest.raises(EnvironmentUnusable, match="failed before"):
            act()
    bench.close()
    assert device.open() == {}
    assert device.faults == []


def test_an_engine_that_fails_is_noticed_where_it_is_waited_for(device: EmulatedDevice) -> None:
    def wrong(_: object) -> dict[str, NDArray[Any]]:
        raise ZeroDivisionError("a kernel failed")

    x, y, stream = device.memory(NBYTES), device.memory(NBYTES), device.stream()
    context = ready(EmulatedEngine(device, PORTS, wrong), x.address, y.address)
    context.enqueue(stream)
    with pytest.raises(EnvironmentUnusable, match="a kernel failed"):
        stream.sync()
    with pytest.raises(EnvironmentUnusable, match="failed before"):
        device.stream()


def test_engines_of_two_threads_run_at_the_same_time(device: EmulatedDevice) -> None:
    both = threading.Barrier(2, timeout=30)

    def meet(given: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        both.wait()
        return {"y": given["x"]}

    engine = EmulatedEngine(device, PORTS, meet)

    def run(stream: EmulatedStream, context: EmulatedContext) -> None:
        device.enter()
        context.enqueue(stream)
        stream.sync()

    threads = [
        threading.Thread(
            target=run,
            args=(
                device.stream(),
                ready(engine, device.memory(NBYTES).address, device.memory(NBYTES).address),
            ),
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not both.broken
    assert len(engine.runs) == 2


def test_an_array_of_another_library_is_waited_for(device: EmulatedDevice) -> None:
    values = np.arange(8, dtype=np.float32).reshape(2, 4)
    theirs, stream, pinned = TheirArray(device, values), device.stream(), device.pinned(NBYTES)
    facts = device.foreign(theirs, stream)
    assert (facts.dtype, facts.shape, facts.contiguous) == ("float32", (2, 4), True)
    stream.copy(pinned.address, facts.address, NBYTES)
    stream.sync()
    assert (pinned.array("float32", (2, 4)) == values).all()
    assert device.open() == {"stream": 1, "pinned": 1}
    gapped = TheirArray(device, values, gap=3)
    assert not device.foreign(gapped, stream).contiguous


def test_an_array_of_another_library_that_is_read_at_once_is_not_there_yet(device: EmulatedDevice) -> None:
    theirs = TheirArray(device, np.ones((2, 4), np.float32))
    with pytest.raises(Misuse, match="a race"):
        device.stream().copy(
            device.pinned(NBYTES).address, theirs.__cuda_array_interface__["data"][0], NBYTES
        )


def test_an_array_of_another_library_must_live_as_long_as_it_is_read(device: EmulatedDevice) -> None:
    theirs, stream = TheirArray(device, np.ones((2, 4), np.float32)), device.stream()
    address = device.foreign(theirs, stream).address
    del theirs
    with pytest.raises(Misuse, match="used after it was closed"):
        stream.copy(device.pinned(NBYTES).address, address, NBYTES)


def test_what_is_no_device_array_or_another_devices_is_refused(device: EmulatedDevice) -> None:
    stream = device.stream()
    with pytest.raises(UsageError, match="no device array"):
        device.foreign(np.zeros(4), stream)
    elsewhere = EmulatedDevice()
    elsewhere.enter()
    with pytest.raises(UsageError, match="another device"):
        device.foreign(TheirArray(elsewhere, np.zeros((1, 2), np.float32)), stream)
