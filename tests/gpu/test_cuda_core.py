"""The device over the real cuda.core, and the session over it with small kernels in place of engines."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vsa_rt.engines.cuda.device import CudaDevice
from vsa_rt.engines.cuda.session import CudaSession
from vsa_rt.errors import EnvironmentUnusable, UsageError

pytestmark = pytest.mark.gpu

Images = Callable[..., NDArray[np.uint8]]
Opener = Callable[..., CudaSession]
Reference = Callable[[NDArray[np.uint8]], dict[str, NDArray[np.float32]]]

LAUNCHES = 10_000


def agree(found: Any, expected: dict[str, NDArray[np.float32]]) -> None:
    """Every tensor is exactly what it must be."""
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


# The device


def test_the_device_says_what_it_is(device: CudaDevice) -> None:
    facts = device.facts
    assert facts.name
    assert facts.capability.startswith("sm_")
    free, total = device.memory_left()
    assert 0 < free <= total
    assert facts.nbytes >= 1 << 28


def test_bytes_come_back_as_they_went(device: CudaDevice) -> None:
    values = np.random.default_rng(0).integers(0, 256, 1000, np.uint8)
    with (
        closing(device.stream()) as stream,
        closing(device.pinned(2000)) as host,
        closing(device.memory(1000)) as there,
    ):
        assert there.address % 256 == 0
        host.array("uint8", (1000,))[:] = values
        stream.copy(there.address, host.address, 1000)
        stream.copy(host.address + 1000, there.address, 1000)
        stream.sync()
        np.testing.assert_array_equal(host.array("uint8", (1000,), 1000), values)


def test_an_event_orders_two_streams(device: CudaDevice) -> None:
    nbytes = 64 << 20
    with (
        closing(device.stream()) as first,
        closing(device.stream()) as second,
        closing(device.event()) as event,
        closing(device.event()) as done,
        closing(device.pinned(nbytes)) as host,
        closing(device.pinned(nbytes)) as back,
        closing(device.memory(nbytes)) as there,
    ):
        host.array("uint8", (nbytes,))[:] = 7
        first.copy(there.address, host.address, nbytes)
        first.record(event)
        second.wait(event)
        second.copy(back.address, there.address, nbytes)
        second.record(done)
        done.sync()
        assert (back.array("uint8", (nbytes,)) == 7).all()


def test_captured_work_is_done_at_every_launch_and_not_before(device: CudaDevice) -> None:
    with (
        closing(device.stream()) as stream,
        closing(device.stream()) as branch,
        closing(device.event()) as fork,
        closing(device.event()) as join,
        closing(device.pinned(64)) as host,
        closing(device.memory(32)) as there,
    ):
        given, back = host.array("uint8", (32,)), host.array("uint8", (32,), 32)
        given[:], back[:] = 5, 0
        capture = device.capture(stream)
        stream.copy(there.address, host.address, 32)
        stream.record(fork)
        branch.wait(fork)
        branch.copy(host.address + 32, there.address, 32)
        branch.record(join)
        stream.wait(join)
        with closing(capture.end()) as graph:
            stream.sync()
            assert (back == 0).all()
            for value in (5, 6):
                given[:] = value
                graph.launch(stream)
                stream.sync()
                assert (back == value).all()


def test_a_stream_that_is_not_joined_fails_the_capture_and_nothing_else(device: CudaDevice) -> None:
    with (
        closing(device.stream()) as stream,
        closing(device.stream()) as branch,
        closing(device.event()) as fork,
        closing(device.pinned(32)) as host,
        closing(device.memory(32)) as there,
    ):
        capture = device.capture(stream)
        stream.record(fork)
        branch.wait(fork)
        branch.copy(there.address, host.address, 32)
        with pytest.raises(EnvironmentUnusable, match="was not joined"):
            capture.end()
    with closing(device.stream()) as stream:
        stream.sync()


def test_an_abandoned_capture_leaves_the_stream_of_use(device: CudaDevice) -> None:
    with closing(device.stream()) as stream, closing(device.event()) as event:
        device.capture(stream).abandon()
        stream.record(event)
        event.sync()


def test_memory_that_is_not_there_is_refused_and_the_rest_still_works(device: CudaDevice) -> None:
    _, total = device.memory_left()
    with pytest.raises(EnvironmentUnusable, match=r"of GPU memory, .* are free: .*not enough memory"):
        device.memory(4 * total)
    with closing(device.memory(1024)) as there:
        assert there.address


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_is_told_to_spawn(device: CudaDevice) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            device.enter()
        except UsageError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as said:
        assert "spawn" in said.read()
    device.enter()


BROKEN = """
import sys
from cuda.core import LaunchConfig, Program, launch
from vsa_rt.engines.cuda.device import open_device
from vsa_rt.errors import EnvironmentUnusable
device = open_device()
stream, event = device.stream(), device.event()
code = 'extern "C" __global__ void bad(int* x) { *x = 1; }'
kernel = Program(code, code_type="c++").compile("cubin").get_kernel("bad")
launch(stream.native, LaunchConfig(grid=1, block=1), kernel, 8)
stream.record(event)
try:
    event.sync()
except EnvironmentUnusable as error:
    print(error)
"""


def test_a_kernel_that_breaks_the_process_says_to_restart_it(device: CudaDevice, kernels: Any) -> None:
    ended = subprocess.run([sys.executable, "-c", BROKEN], capture_output=True, text=True, check=False)
    assert "restart it" in ended.stdout, ended.stderr


# The session


@pytest.mark.parametrize("form", ["merged", "streams"])
def test_every_batch_size_is_right_in_every_slot(
    opened: Opener, images: Images, reference: Reference, form: str
) -> None:
    with closing(opened(division={1: form})) as session:
        for count in (*range(1, 9), 8, 1, 3):
            for number, slot in enumerate(session.slots):
                image = images(count, number)
                agree(slot.run({"image": image}), reference(image))
        assert session.notes == []


@pytest.mark.parametrize("form", ["merged", "streams"])
def test_without_graphs_the_results_are_the_same_and_it_is_said(
    opened: Opener, images: Images, form: str
) -> None:
    image = images(5)
    with (
        closing(opened(division={1: form})) as graphs,
        closing(opened(division={1: form}, capturable=False)) as plain,
    ):
        agree(plain.slots[0].run({"image": image}), dict(graphs.slots[0].run({"image": image})))
        assert graphs.notes == []
        assert "run without a CUDA graph" in plain.notes[0]


def test_two_slots_run_beside_each_other(opened: Opener, images: Images, reference: Reference) -> None:
    failures: list[BaseException] = []
    with closing(opened(division={1: "streams"}, cycles=200_000)) as session:

        def use(number: int) -> None:
            try:
                for turn in range(200):
                    image = images(1 + turn % 8, 1000 * number + turn)
                    agree(session.slots[number].run({"image": image}), reference(image))
            except BaseException as error:  # noqa: BLE001 - the thread's failure is the test's
                failures.append(error)

        threads = [threading.Thread(target=use, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []


def test_device_arrays_go_in_and_come_out_without_the_host(
    device: CudaDevice, opened: Opener, images: Images, reference: Reference
) -> None:
    image = images(3)
    with (
        closing(opened()) as session,
        closing(device.stream()) as stream,
        closing(device.pinned(image.nbytes)) as host,
        closing(device.memory(image.nbytes)) as there,
    ):
        host.array("uint8", image.shape)[...] = image
        stream.copy(there.address, host.address, image.nbytes)
        interface = {
            "shape": image.shape,
            "typestr": "|u1",
            "data": (there.address, False),
            "strides": None,
            "stream": stream.handle,
            "version": 3,
        }
        theirs = SimpleNamespace(__cuda_array_interface__=interface)
        kept = session.slots[0].run_device({"image": theirs}, keep=True)
        agree({name: array.to_host() for name, array in kept.items()}, reference(image))
        agree(session.slots[1].run_device({"image": theirs}, keep=False), reference(image))
        for array in kept.values():
            array.close()


def test_tensors_of_torch_go_in_on_their_own_stream(
    opened: Opener, images: Images, reference: Reference
) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("torch has no CUDA here")
    with closing(opened()) as session:
        image = images(4)
        with torch.cuda.stream(torch.cuda.Stream()):
            late = torch.from_numpy(image).to("cuda", non_blocking=True)
            torch.cuda._sleep(10_000_000)
            late = late + 1
            found = session.slots[0].run_device({"image": late}, keep=True)
        agree({name: array.to_host() for name, array in found.items()}, reference(image + 1))
        theirs = torch.as_tensor(found["scores"], device="cuda")
        np.testing.assert_array_equal(theirs.cpu().numpy(), reference(image + 1)["scores"])
        with pytest.raises(UsageError, match="is not on a GPU"):
            session.slots[0].run_device({"image": torch.from_numpy(image)}, keep=False)


def test_a_kept_array_that_torch_still_reads_is_not_freed_under_it(
    opened: Opener, images: Images, reference: Reference
) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("torch has no CUDA here")
    first, other = (torch.from_numpy(images(4, seed)).to("cuda") for seed in (1, 2))
    expected = reference(images(4, 1))["scores"]
    with closing(opened()) as session:
        session.prepare([4])
        kept = dict(session.slots[0].run_device({"image": first}, keep=True))
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):
            theirs = torch.as_tensor(kept["scores"], device="cuda")
            torch.cuda._sleep(1_000_000_000)
            late = theirs.clone()
        del theirs, kept
        # Memory that was freed too early goes to the next outputs, which are written before the clone reads.
        again = session.slots[1].run_device({"image": other}, keep=True)
        torch.cuda.synchronize()
        np.testing.assert_array_equal(late.cpu().numpy(), expected)
        for array in again.values():
            array.close()


def test_ten_thousand_launches_leak_nothing(device: CudaDevice, opened: Opener, images: Images) -> None:
    # Where the GPU shares the host's memory, everything else on the machine moves it, too.
    slack = 256 << 20 if device.facts.integrated else 16 << 20
    batches = [images(count) for count in (1, 3, 8)]
    with closing(opened()) as session:
        session.prepare([1, 3, 8])
        for image in batches:
            session.slots[0].run({"image": image})
        before, there = device.memory_left()[0], session.open_resources()
        for turn in range(LAUNCHES):
            session.slots[turn % 2].run({"image": batches[turn % 3]})
        assert session.open_resources() == there
        assert device.memory_left()[0] > before - slack
    assert set(session.open_resources().values()) == {0}


def test_closing_and_opening_again_leaks_nothing(device: CudaDevice, opened: Opener, images: Images) -> None:
    slack = 256 << 20 if device.facts.integrated else 16 << 20
    image = images(2)

    def once() -> None:
        with closing(opened()) as session:
            session.slots[0].run({"image": image})
        assert set(session.open_resources().values()) == {0}

    once()
    before = device.memory_left()[0]
    for _ in range(50):
        once()
    assert device.memory_left()[0] > before - slack


def test_a_closed_session_refuses(opened: Opener, images: Images) -> None:
    session = opened()
    session.close()
    session.close()
    with pytest.raises(UsageError, match="closed"):
        session.slots[0].run({"image": images(1)})
