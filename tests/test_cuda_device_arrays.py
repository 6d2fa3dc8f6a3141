"""Arrays of other libraries go into a session on the emulated GPU without the host, and results may stay there."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from cuda_sessions import MERGED, STREAMS, count_calls, open_session, opened
from emulated_cuda import EmulatedDevice
from emulated_engine import EmulatedEngine
from emulated_ensemble import INPUTS, OUTPUTS, Ensemble, Tensors, items
from emulated_memory import TheirArray
from emulated_work import Action, Misuse
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vsa_rt.contracts import TensorSpec
from vsa_rt.engines.backend import DeviceSlot, OpenOptions
from vsa_rt.engines.cuda.arrays import DeviceArray
from vsa_rt.engines.cuda.gate import Gate
from vsa_rt.engines.cuda.seam import Form, Port, Stage
from vsa_rt.engines.cuda.session import CudaSession
from vsa_rt.engines.cuda.slot import CudaSlot
from vsa_rt.errors import EnvironmentUnusable, UsageError


@pytest.fixture
def device() -> EmulatedDevice:
    """No thread has entered it."""
    return EmulatedDevice()


def theirs(device: EmulatedDevice, given: Tensors) -> dict[str, TheirArray]:
    """Items as another library has them, still being written."""
    return {name: TheirArray(device, array) for name, array in given.items()}


def on_host(outputs: Mapping[str, Any]) -> Tensors:
    """Outputs, wherever they lie; closed if that is on the device."""
    found = {}
    for name, array in outputs.items():
        found[name] = array.copy() if isinstance(array, np.ndarray) else array.to_host()
        if not isinstance(array, np.ndarray):
            array.close()
    return found


def check(ensemble: Ensemble, outputs: Mapping[str, Any], wanted: Tensors) -> None:
    """Compare outputs, wherever they lie, with what must be."""
    reference = ensemble.reference(wanted)
    found = on_host(outputs)
    assert found.keys() == reference.keys()
    assert all(np.array_equal(found[name], reference[name]) for name in reference)


@pytest.mark.parametrize("keep", [False, True], ids=["to the host", "kept"])
@pytest.mark.parametrize("division", [MERGED, STREAMS], ids=["merged", "streams"])
def test_arrays_of_another_library_give_what_the_hosts_give(
    device: EmulatedDevice, division: Any, keep: bool
) -> None:
    ensemble = Ensemble(device)
    with opened(ensemble, division=division) as session:
        for seed, count in enumerate((3, 5, 1, 3, 4, 2, 5, 1)):
            place = session.slots[seed % 2]
            typed: DeviceSlot = place
            given = items(count, seed)
            check(ensemble, typed.run_device(theirs(device, given), keep), given)
        assert session.notes == []


Call = tuple[int, str]


def mixed(max_batch: int, calls: list[Call]) -> None:
    """Calls of all kinds in turns on one slot: right results, and zeros behind every batch."""
    device = EmulatedDevice()
    ensemble = Ensemble(device, ("merged",))
    with opened(ensemble, max_batch=max_batch, slots=1, division={}) as session:
        place = session.slots[0]
        for seed, (number, kind) in enumerate(calls):
            count = min(number, max_batch)
            given = {name: array + 1 for name, array in items(count, seed).items()}
            if kind == "host":
                found: Mapping[str, Any] = place.run(given)
            elif kind == "buffers":
                for name, buffer in place.buffers.items():
                    buffer[:] = 99
                    buffer[:count] = given[name]
                found = place.run({name: buffer[:count] for name, buffer in place.buffers.items()})
            else:
                found = place.run_device(theirs(device, given), kind == "kept")
            check(ensemble, found, given)
            for name, seen in ensemble.seen().items():
                assert np.array_equal(seen[:count], given[name])
                assert not seen[count:].any(), "the padding is not zero"


KINDS = ("host", "buffers", "device", "kept")


@settings(max_examples=60, deadline=None)
@given(
    max_batch=st.integers(1, 20),
    calls=st.lists(st.tuples(st.integers(1, 20), st.sampled_from(KINDS)), min_size=1, max_size=8),
)
def test_calls_of_all_kinds_may_follow_each_other(max_batch: int, calls: list[Call]) -> None:
    mixed(max_batch, calls)


def test_rows_of_a_call_before_are_not_padding_and_that_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    finish = CudaSlot._finish

    def clean(self: CudaSlot, put: Any, count: int, bucket: int) -> None:
        finish(self, put, count, bucket)
        self._dirty = 0  # as if nothing lay on the device

    monkeypatch.setattr(CudaSlot, "_finish", clean)
    monkeypatch.setattr(CudaSlot, "_pad", lambda *_: None)
    with pytest.raises(AssertionError, match="padding is not zero"):
        mixed(4, [(4, "device"), (3, "device")])


def test_no_copy_goes_through_the_host(device: EmulatedDevice) -> None:
    with opened(Ensemble(device)) as session:
        place = session.slots[0]
        given = theirs(device, items(4))
        on_host(place.run_device(given, True))
        for keep, out in ((True, "memory to memory"), (False, "memory to pinned")):
            before = len(device.log)
            outputs = place.run_device(given, keep)
            counts = count_calls(device.log[before:])
            on_host(outputs)
            assert counts["graph.launch"] == 1
            assert counts["context.enqueue"] == 0
            assert counts["copy their memory to memory"] == len(INPUTS)
            assert counts[f"copy {out}"] == len(OUTPUTS)
            assert sum(n for name, n in counts.items() if name.startswith("copy")) == len(INPUTS) + len(
                OUTPUTS
            )


def test_padding_is_written_once_and_not_at_every_call(device: EmulatedDevice) -> None:
    with opened(Ensemble(device)) as session:
        place = session.slots[0]
        given = theirs(device, items(3))
        place.run_device(given, False)
        before = len(device.log)
        place.run_device(given, False)
        assert count_calls(device.log[before:])["copy pinned to memory"] == 0


def test_kept_outputs_are_the_callers_own(device: EmulatedDevice) -> None:
    ensemble = Ensemble(device)
    with opened(ensemble) as session:
        first, second = (session.slots[0].run_device(theirs(device, items(3, n)), True) for n in range(2))
        assert first["scores"].address != second["scores"].address
        assert (first["b"].shape, first["b"].dtype, len(first["b"])) == ((3, 9), np.float32, 3)
        facts = first["b"].__cuda_array_interface__
        assert facts["shape"] == (3, 9)
        assert np.dtype(facts["typestr"]) == np.float32
        assert facts["version"] == 3
        assert facts["data"] == (first["b"].address, False)
        assert device.kind_at(first["b"].address) == "memory"
        for number, outputs in enumerate((first, second)):
            check(ensemble, outputs, items(3, number))
        with pytest.raises(UsageError, match="closed"):
            first["scores"].to_host()
        with pytest.raises(UsageError, match="closed"):
            _ = first["scores"].__cuda_array_interface__


def test_kept_outputs_outlive_the_session_and_go_with_their_last_reader(device: EmulatedDevice) -> None:
    ensemble = Ensemble(device)
    with opened(ensemble) as session:
        kept = session.slots[0].run_device(theirs(device, items(2)), True)
        scores = kept["scores"]
        del kept
        session.close()
        gc.collect()
        assert device.open() == {"memory": 1}
        assert np.array_equal(scores.to_host(), ensemble.reference(items(2))["scores"])
        del scores
        gc.collect()
        assert device.open() == {}


def test_what_a_session_gave_it_takes_again(device: EmulatedDevice) -> None:
    ports = [Port("x", True, "float32", (None, 3)), Port("y", False, "float32", (None, 3))]
    engine = EmulatedEngine(device, ports, lambda given: {"y": given["x"] * 2})
    session = CudaSession(
        device,
        [Form("merged", (Stage("merged", engine),))],
        [TensorSpec("x", "float32", (None, 3))],
        [TensorSpec("y", "float32", (None, 3))],
        OpenOptions(max_batch=4, threads=1, slots=2),
    )
    array: Any = TheirArray(device, np.ones((3, 3), np.float32))
    for number in range(4):
        array = session.slots[number % 2].run_device({"x": array}, True)["y"]
    assert array.to_host().tolist() == [[16.0] * 3] * 3
    array.close()
    session.close()
    gc.collect()
    assert device.open() == {}
    assert device.faults == []


def test_what_is_no_fitting_device_array_is_refused_and_nothing_breaks(device: EmulatedDevice) -> None:
    ensemble = Ensemble(device)
    with opened(ensemble) as session:
        place = session.slots[0]
        good = items(2)
        elsewhere = EmulatedDevice()
        elsewhere.enter()
        wrong: list[tuple[dict[str, Any], str]] = [
            ({"image": TheirArray(device, good["image"])}, "image"),
            ({**theirs(device, good), "objects": good["objects"]}, "no device array"),
            ({**theirs(device, good), "objects": TheirArray(elsewhere, good["objects"])}, "another device"),
            ({**theirs(device, good), "objects": TheirArray(device, good["objects"], gap=1)}, "contiguous"),
            ({**theirs(device, good), "objects": TheirArray(device, items(3)["objects"])}, "batch 3"),
            ({**theirs(device, good), "image": TheirArray(device, good["objects"])}, "image"),
            (dict(theirs(device, items(6))), "batch 6"),
        ]
        for given, said in wrong:
            for keep in (False, True):
                with pytest.raises(UsageError, match=said):
                    place.run_device(given, keep)
        check(ensemble, place.run_device(theirs(device, good), True), good)


def test_their_arrays_may_go_once_the_call_is_back(device: EmulatedDevice) -> None:
    ensemble = Ensemble(device)
    with opened(ensemble) as session:
        for seed in range(3):
            given = theirs(device, items(2, seed))
            outputs = session.slots[0].run_device(given, True)
            del given
            gc.collect()
            check(ensemble, outputs, items(2, seed))


def test_who_does_not_wait_for_the_callers_stream_is_caught(
    device: EmulatedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = EmulatedDevice.foreign

    def hasty(self: EmulatedDevice, array: Any, stream: Any) -> Any:
        array.__cuda_array_interface__["stream"] = None
        return look(self, array, stream)

    monkeypatch.setattr(EmulatedDevice, "foreign", hasty)
    ensemble = Ensemble(device)
    with pytest.raises(Misuse, match="a race"), opened(ensemble) as session:
        session.slots[0].run_device(theirs(device, items(2)), True)


def test_results_on_the_host_last_until_the_slots_next_run(device: EmulatedDevice) -> None:
    """Preparing another batch size is no run."""
    ensemble = Ensemble(device)
    with opened(ensemble) as session:
        found = session.slots[0].run_device(theirs(device, items(5)), False)
        session.prepare([1, 2, 3])
        check(ensemble, found, items(5))


def test_memory_that_ends_while_outputs_are_kept_breaks_nothing() -> None:
    device = EmulatedDevice(nbytes=12000)
    ensemble = Ensemble(device)
    with opened(ensemble) as session:
        held: list[Mapping[str, Any]] = []
        given = theirs(device, items(5))

        def fill() -> None:
            for _ in range(200):
                held.append(session.slots[0].run_device(given, True))

        with pytest.raises(EnvironmentUnusable, match="out of memory"):
            fill()
        assert held
        before = device.open()
        for outputs in held[1:]:
            on_host(outputs)
        assert device.open()["memory"] == before["memory"] - (len(held) - 1) * len(OUTPUTS)
        check(ensemble, session.slots[0].run_device(given, True), items(5))
        check(ensemble, held[0], items(5))


def read_late(device: EmulatedDevice, array: DeviceArray) -> Callable[[], NDArray[Any]]:
    """Queue a kernel of another library that reads an array; what it saw, once it ran."""
    nbytes, address, seen = array.nbytes, array.address, np.zeros(array.shape, array.dtype)

    def run() -> None:  # over the address alone: a queued kernel keeps no array alive
        seen[...] = device.at(address, nbytes).view(seen.dtype).reshape(seen.shape)

    device.their_stream().put(Action("their reader", run, reads=[(address, address + nbytes)]))
    return lambda: seen


@pytest.mark.parametrize("way", ["closed", "let go"])
def test_a_kept_array_goes_only_once_whatever_reads_it_is_done(device: EmulatedDevice, way: str) -> None:
    """On whose streams, nobody says: ``y = f(torch.as_tensor(x)); del x`` leaves the kernel queued."""
    ensemble = Ensemble(device)
    with opened(ensemble, device_is_shared=True) as session:
        kept = dict(session.slots[0].run_device(theirs(device, items(2)), True))
        look = read_late(device, kept["scores"])
        if way == "closed":
            kept["scores"].close()
        del kept["scores"]
        assert device.names()[-2:] == ["device.sync", "memory.close"]
        assert np.array_equal(look(), ensemble.reference(items(2))["scores"])
        del kept
    assert device.open() == {}


def test_a_kept_array_that_goes_under_its_reader_is_caught(
    device: EmulatedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EmulatedDevice, "sync", lambda _: None)
    session = open_session(Ensemble(device))
    kept = session.slots[0].run_device(theirs(device, items(2)), True)
    read_late(device, kept["scores"])
    kept["scores"].close()
    assert any("their reader is under way" in fault for fault in device.faults)


def test_what_a_session_frees_does_not_wait_for_the_whole_device(device: EmulatedDevice) -> None:
    """Nobody else reads it, and another session may capture meanwhile, which such a wait would break."""
    with opened(Ensemble(device)) as session:
        session.slots[0].run_device(theirs(device, items(2)), True)["scores"].to_host()
        gc.collect()
        before = len(device.log)
    assert "device.sync" not in device.names(before)


def collecting(monkeypatch: pytest.MonkeyPatch, kept: list[Any]) -> None:
    """Let the collector find kept arrays in the middle of a capture."""
    begin = EmulatedDevice.capture

    def collect(self: EmulatedDevice, stream: Any) -> Any:
        made = begin(self, stream)
        kept.clear()
        gc.collect()
        return made

    monkeypatch.setattr(EmulatedDevice, "capture", collect)


@pytest.mark.parametrize("whose", ["its own", "another session's"])
def test_an_array_that_is_collected_during_a_capture_waits_for_its_end(
    device: EmulatedDevice, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    other = open_session(Ensemble(device))
    with opened(Ensemble(device), device_is_shared=True) as session:
        maker = session if whose == "its own" else other
        kept = [maker.slots[0].run_device(theirs(device, items(2)), True)]
        held = set(device.things("memory"))
        collecting(monkeypatch, kept)
        session.prepare([1])
        assert session.notes == []
        assert len(held - set(device.things("memory"))) == len(OUTPUTS)
    other.close()
    assert device.open() == {}
    assert device.faults == []


def test_an_array_that_is_freed_during_a_capture_is_caught(
    device: EmulatedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Gate, "give", lambda _, thing: suppressed(thing.close))
    session = open_session(Ensemble(device))
    kept = [session.slots[0].run_device(theirs(device, items(2)), True)]
    collecting(monkeypatch, kept)
    before = device.names().count("device.capture")
    session.prepare([1])
    session.close()
    assert device.names().count("device.capture") == before + len(session.slots) + 1, "none was lost"
    assert any("its thread captures" in fault for fault in device.faults)


def test_a_child_process_begins_with_a_gate_of_its_own(
    device: EmulatedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever held the lock, or left memory behind it, is the parent's."""
    for name in ("_lock", "_loose"):
        monkeypatch.setattr(Gate, name, type(Gate.__dict__[name])() if name == "_loose" else threading.Lock())
    gate, lock = Gate(device), Gate._lock
    with lock:
        device.enter()
        memory = device.memory(16)
        gate.give(memory)
        Gate.forked()
        with gate:
            pass
    assert not memory.closed


def suppressed(act: Callable[[], None]) -> None:
    """Do something whose failure nobody sees, as in a finaliser."""
    with suppress(EnvironmentUnusable):
        act()


def test_many_threads_run_on_their_slots_with_arrays_of_both_kinds(device: EmulatedDevice) -> None:
    ensemble = Ensemble(device)
    with opened(ensemble, slots=3) as session, ThreadPoolExecutor(3) as pool:
        start = threading.Barrier(3, timeout=30)

        def run(number: int) -> None:
            start.wait()
            device.enter()
            place = session.slots[number]
            for seed in range(12):
                given = items(1 + seed % 5, 100 * number + seed)
                outputs = (
                    place.run_device(theirs(device, given), seed % 2 == 0) if seed % 3 else place.run(given)
                )
                check(ensemble, outputs, given)

        for future in [pool.submit(run, number) for number in range(3)]:
            future.result(60)
