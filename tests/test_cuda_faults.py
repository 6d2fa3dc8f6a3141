"""What goes wrong between this process and a GPU ends in one sentence; here without a GPU, over a double of cuda.core."""

from __future__ import annotations

import ctypes
import enum
import gc
import os
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vsa_rt.engines.cuda.arrays import DeviceArray
from vsa_rt.engines.cuda.device import CudaDevice, open_device
from vsa_rt.engines.cuda.faults import FAULTS, explain, find_fault, translated, unusable
from vsa_rt.engines.cuda.gate import Gate, Health
from vsa_rt.engines.cuda.seam import DeviceFacts
from vsa_rt.errors import EnvironmentUnusable, UsageError

#: After which "the process must be terminated and relaunched", or the context "must be destroyed"; cuda.h of CUDA 13.0.
STICKY = {
    "CUDA_ERROR_ASSERT",
    "CUDA_ERROR_CONTAINED",
    "CUDA_ERROR_EXTERNAL_DEVICE",
    "CUDA_ERROR_HARDWARE_STACK_ERROR",
    "CUDA_ERROR_ILLEGAL_ADDRESS",
    "CUDA_ERROR_ILLEGAL_INSTRUCTION",
    "CUDA_ERROR_INVALID_ADDRESS_SPACE",
    "CUDA_ERROR_INVALID_PC",
    "CUDA_ERROR_LAUNCH_FAILED",
    "CUDA_ERROR_LAUNCH_TIMEOUT",
    "CUDA_ERROR_MISALIGNED_ADDRESS",
    "CUDA_ERROR_MPS_CLIENT_TERMINATED",
    "CUDA_ERROR_TENSOR_MEMORY_LEAK",
}
ORIN = DeviceFacts("Orin", "sm_87", 8 << 30, "12.6", integrated=True)


class CUDAError(Exception):
    """Named as cuda.core's own, which is not public."""


# A double of cuda.core


class Native:
    """One object of cuda.core's: what is called on it is written down, or fails."""

    def __init__(self, core: Core, kind: str, **members: Any) -> None:
        self._core, self._kind = core, kind
        self.__dict__.update(members)

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            self._core.calls.append(f"{self._kind}.{name}")
            if (error := self._core.fails.get(f"{self._kind}.{name}")) is not None:
                raise error
            if name == "create_graph_builder":
                return Native(self._core, "builder")
            if name == "complete":
                return Native(self._core, "graph")
            return self

        return call


class Core:
    """``cuda.core``, as far as the device uses it."""

    LEGACY_DEFAULT_STREAM = "the legacy default stream"

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fails: dict[str, Exception] = {}
        self.views: dict[int, Any] = {}
        self._blocks: list[Any] = []
        self.utils = SimpleNamespace(StridedMemoryView=self)

    def Device(self, ordinal: int) -> Native:
        properties = SimpleNamespace(memory_pools_supported=True)
        return Native(self, "device", properties=properties, create_stream=self.create_stream)

    def create_stream(self, options: Any = None) -> Native:
        return Native(self, "stream", handle=64)

    def DeviceMemoryResource(self, *_: Any) -> Native:
        return Native(self, "pool")

    def LegacyPinnedMemoryResource(self) -> Any:
        def allocate(nbytes: int) -> Native:
            block = (ctypes.c_ubyte * nbytes)()
            self._blocks.append(block)
            return Native(self, "buffer", handle=ctypes.addressof(block))

        return SimpleNamespace(allocate=allocate)

    Buffer = SimpleNamespace(from_handle=None)

    def from_cuda_array_interface(self, array: Any, stream_ptr: int) -> Any:
        self.calls.append(f"view.cai {stream_ptr}")
        return array.view

    def from_dlpack(self, array: Any, stream_ptr: int) -> Any:
        self.calls.append(f"view.dlpack {stream_ptr}")
        if isinstance(array.view, Exception):
            raise array.view
        return array.view

    def __getattr__(self, name: str) -> Any:  # options, and Buffer's copies, of which nothing is asked here
        return lambda *_, **__: Native(self, name)


@pytest.fixture
def core() -> Core:
    """A fresh double."""
    return Core()


@pytest.fixture
def device(core: Core) -> CudaDevice:
    """A device over the double."""
    return CudaDevice(core, 0, ORIN)


class Theirs:
    """A device array of another library.

    Args:
        view: What cuda.core sees, or raises.
        interface: Its ``__cuda_array_interface__``, if it has one.
        kind: DLPack's word for where it lies; ``None`` if it has no DLPack.
    """

    def __init__(self, view: Any, *, interface: dict[str, Any] | None = None, kind: int | None = 2) -> None:
        self.view = view
        if interface is not None:
            self.__cuda_array_interface__ = interface
        if kind is not None:
            self.__dlpack_device__ = lambda: (kind, 0)


def view(**changes: Any) -> Any:
    """cuda.core's view of a float32 array ``(2, 3)`` on GPU 0."""
    known = {"ptr": 4096, "dtype": np.dtype(np.float32), "shape": (2, 3), "strides": None}
    return SimpleNamespace(**({**known, "device_id": 0, "is_device_accessible": True} | changes))


# Faults


def test_exactly_the_errors_after_which_the_driver_is_of_no_more_use_tell_to_restart() -> None:
    assert {fault.name for fault in FAULTS if fault.sticky} == STICKY
    for fault in FAULTS:
        assert ("restart it" in str(fault)) == fault.sticky
        assert fault.name in str(fault)


def test_errors_bear_the_names_and_words_of_the_real_cuda() -> None:
    pytest.importorskip("cuda.bindings", reason="cuda-bindings names CUDA's errors")
    driver, runtime = import_module("cuda.bindings.driver"), import_module("cuda.bindings.runtime")

    for fault in FAULTS:
        of = runtime.cudaError_t if fault.name.startswith("cudaError") else driver.CUresult
        number = int(getattr(of, fault.name))
        _, words = runtime.cudaGetErrorString(runtime.cudaError_t(number))
        assert fault.words == words.decode()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("CUDA_ERROR_OUT_OF_MEMORY: The API call failed", "CUDA_ERROR_OUT_OF_MEMORY"),
        ("Error Code 1: Cuda Runtime (an illegal memory access was encountered)", "CUDA_ERROR_ILLEGAL_ADDRESS"),
        ("(cudaError 35: CUDA driver version is insufficient for CUDA runtime version)", "cudaErrorInsufficientDriver"),
        ("cudaErrorUnknownToUs: out of memory", "CUDA_ERROR_OUT_OF_MEMORY"),
        ("CUDA_ERROR_PEER_ACCESS_UNSUPPORTED: no", ""),
        ("all is well", ""),
    ],
)  # fmt: skip
def test_an_error_is_found_in_the_words_of_whoever_reports_it(text: str, name: str) -> None:
    fault = find_fault(text)
    assert (fault.name if fault is not None else "") == name


def test_memory_that_is_gone_and_a_broken_process_get_different_advice() -> None:
    assert "--max-batch" in explain("CUDA_ERROR_OUT_OF_MEMORY: x")
    assert "restart" not in explain("CUDA_ERROR_OUT_OF_MEMORY: x")
    assert "restart it" in explain("CUDA_ERROR_ILLEGAL_ADDRESS: x")
    assert explain("something\n new.") == "something new"


def test_a_session_on_a_broken_process_is_told_to_restart_it_and_not_to_open_again() -> None:
    for fault in FAULTS:
        health = Health()
        health.fail(EnvironmentUnusable(f"the GPU failed: {fault}"))
        with pytest.raises(EnvironmentUnusable, match="failed before") as told:
            health.require()
        assert ("open the engine again" in str(told.value)) == ("restart" not in str(fault))
        assert "restart it" in str(told.value) or not fault.sticky


def test_only_the_drivers_errors_become_sentences() -> None:
    with (
        pytest.raises(EnvironmentUnusable, match=r"^copying: a kernel broke off .*restart it"),
        translated("copying"),
    ):
        raise CUDAError("CUDA_ERROR_LAUNCH_FAILED: An exception occurred")
    with pytest.raises(TypeError, match="our own"), translated("copying"):
        raise TypeError("our own")
    with pytest.raises(UsageError, match=r"^two threads$"), translated("copying"):
        raise UsageError("two threads")
    own = KeyError("x")
    assert unusable(own, "copying") is own


def test_a_driver_that_lacks_a_function_is_too_old() -> None:
    told = unusable(RuntimeError('Function "cuMemGetMemPool" not found'), "opening")
    assert "driver is too old" in str(told)
    assert "cuMemGetMemPool" in str(told)


# Opening


def test_without_a_driver_opening_ends_in_how_to_get_one() -> None:
    pytest.importorskip("cuda.core", reason="cuda-core is not installed")
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        pass
    else:
        pytest.skip("an NVIDIA driver is here")
    with pytest.raises(EnvironmentUnusable, match=r"no NVIDIA driver here.*--gpus all"):
        open_device()


def test_without_cuda_core_opening_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    with pytest.raises(EnvironmentUnusable, match=r"pip install 'cuda-core>=1\.0'"):
        open_device()


class Result(enum.IntEnum):
    """Answers of the driver."""

    CUDA_SUCCESS = 0
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NO_DEVICE = 100


class Driver(ModuleType):
    """``cuda.bindings.driver`` of a machine with GPUs of these capabilities."""

    def __init__(
        self, capabilities: list[str], version: int = 12060, init: Result = Result.CUDA_SUCCESS
    ) -> None:
        super().__init__("cuda.bindings.driver")
        self.capabilities, self.version, self.init = capabilities, version, init

    def cuDriverGetVersion(self) -> tuple[Result, int]:
        return Result(0), self.version

    def cuInit(self, _: int) -> tuple[Result]:
        return (self.init,)

    def cuDeviceGetCount(self) -> tuple[Result, int]:
        return Result(0), len(self.capabilities)

    def cuDeviceGet(self, ordinal: int) -> tuple[Result, int]:
        return Result(0), ordinal

    def cuDeviceTotalMem(self, _: int) -> tuple[Result, int]:
        return Result(0), 8 << 30

    def cuMemGetInfo(self) -> tuple[Result, int, int]:
        return Result(0), 3 << 20, 8 << 30


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, core: Core) -> Any:
    """Makes this a machine with such a driver."""

    def make(driver: Driver, bindings: str = "12.9.4") -> None:
        def device(ordinal: int) -> Any:
            properties = SimpleNamespace(integrated=True, memory_pools_supported=True)
            arch = driver.capabilities[ordinal].removeprefix("sm_")
            facts = {"name": f"GPU {ordinal}", "arch": arch, "properties": properties}
            return Native(core, "device", create_stream=core.create_stream, **facts)

        # Attributes first: the double answers to every other name.
        core.Device = device  # type: ignore[method-assign]
        package = ModuleType("cuda.bindings")
        package.__dict__["__version__"] = bindings
        for name, module in (("core", core), ("bindings", package), ("bindings.driver", driver)):
            monkeypatch.setitem(sys.modules, f"cuda.{name}", module)

    return make


def test_the_first_gpu_of_the_capability_is_opened(machine: Any) -> None:
    machine(Driver(["sm_75", "sm_87", "sm_87"]))
    facts = open_device("sm_87").facts
    assert facts == DeviceFacts("GPU 1", "sm_87", 8 << 30, "12.6", integrated=True)
    assert open_device().facts.capability == "sm_75"


def test_a_capability_that_is_not_here_is_refused_with_what_is(machine: Any) -> None:
    machine(Driver(["sm_75"]))
    with pytest.raises(EnvironmentUnusable, match=r"no GPU of sm_87 is here; there is GPU 0 \(sm_75\)"):
        open_device("sm_87")


def test_a_driver_without_a_gpu_says_where_to_look(machine: Any) -> None:
    machine(Driver([], init=Result.CUDA_ERROR_NO_DEVICE))
    with pytest.raises(EnvironmentUnusable, match=r"finds no GPU.*CUDA_VISIBLE_DEVICES"):
        open_device()
    machine(Driver([]))
    with pytest.raises(EnvironmentUnusable, match="there is none"):
        open_device()


def test_a_driver_older_than_the_bindings_is_named_with_both_versions(machine: Any) -> None:
    machine(Driver(["sm_87"], version=12060), bindings="13.5.0")
    with pytest.raises(
        EnvironmentUnusable,
        match=r"it serves CUDA 12\.6, cuda-bindings 13\.5\.0 needs CUDA 13; .*'cuda-bindings==12\.\*'",
    ):
        open_device()


# An opened device


def test_a_forked_process_is_told_to_spawn(device: CudaDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = device.stream()
    ours = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: ours + 1)
    for call in (device.enter, device.event, stream.close, lambda: device.memory(16)):
        with pytest.raises(UsageError, match=rf"opened in process {ours}.*spawn"):
            call()


def test_memory_that_is_not_there_is_refused_with_what_is_left(
    device: CudaDevice, core: Core, machine: Any
) -> None:
    machine(Driver(["sm_87"]))
    core.fails["pool.allocate"] = CUDAError("CUDA_ERROR_OUT_OF_MEMORY: x")
    with pytest.raises(
        EnvironmentUnusable, match=r"no 256\.0 MiB of GPU memory, 3\.0 MiB of 8192\.0 MiB are free"
    ):
        device.memory(256 << 20)


def test_what_is_closed_twice_is_given_back_once(device: CudaDevice, core: Core) -> None:
    for thing, kind in ((device.stream(), "stream"), (device.pinned(16), "buffer")):
        core.calls.clear()
        thing.close()
        thing.close()
        assert core.calls.count(f"{kind}.close") == 1


def test_pinned_memory_is_seen_as_arrays_of_the_host(device: CudaDevice) -> None:
    memory = device.pinned(64)
    whole = memory.array("uint8", (64,))
    part = memory.array("float32", (2, 3), offset=8)
    part[...] = np.arange(6).reshape(2, 3)
    assert whole[8:32].tobytes() == np.arange(6, dtype=np.float32).tobytes()
    assert part.ctypes.data == memory.address + 8
    with pytest.raises(ValueError, match="buffer"):
        memory.array("float32", (17,))
    memory.close()
    with pytest.raises(ValueError, match="closed"):
        memory.array("uint8", (1,))


def test_a_capture_keeps_to_its_thread_and_its_graph_goes_to_the_gpu_at_once(
    device: CudaDevice, core: Core
) -> None:
    stream = device.stream()
    core.calls.clear()
    graph = device.capture(stream).end()
    graph.launch(stream)
    assert [call for call in core.calls if not call.startswith("device")] == [
        "stream.create_graph_builder",
        "builder.begin_building",
        "builder.end_building",
        "builder.complete",
        "builder.close",
        "graph.upload",
        "graph.launch",
    ]


@pytest.mark.parametrize(
    ("call", "words"),
    [("builder.end_building", "was not joined"), ("builder.complete", "was not joined")],
)
def test_a_capture_that_fails_is_abandoned(device: CudaDevice, core: Core, call: str, words: str) -> None:
    capture = device.capture(device.stream())
    core.fails[call] = CUDAError("CUDA_ERROR_STREAM_CAPTURE_UNJOINED: x")
    core.fails["builder.close"] = CUDAError("CUDA_ERROR_STREAM_CAPTURE_INVALIDATED: x")
    with pytest.raises(EnvironmentUnusable, match=words):
        capture.end()
    assert core.calls[-1] == "builder.close"


def test_a_graph_that_does_not_fit_the_gpu_is_given_back(device: CudaDevice, core: Core) -> None:
    capture = device.capture(device.stream())
    core.fails["graph.upload"] = CUDAError("CUDA_ERROR_OUT_OF_MEMORY: x")
    with pytest.raises(EnvironmentUnusable, match="not enough memory"):
        capture.end()
    assert core.calls[-1] == "graph.close"


# Arrays of other libraries


@pytest.mark.parametrize(
    ("interface", "kind", "done"),
    [
        ({"stream": 7}, 2, ["view.cai 64"]),
        ({"stream": 7}, None, ["view.cai 64"]),
        ({"stream": None}, 2, ["view.dlpack 64"]),
        (None, 13, ["view.dlpack 64"]),
        # Nobody says on which stream it is written.
        ({"stream": None}, None, ["stream.wait", "view.cai 64"]),
        ({}, None, ["stream.wait", "view.cai 64"]),
    ],
)
def test_an_array_is_read_after_what_its_own_library_still_does_to_it(
    device: CudaDevice, core: Core, interface: dict[str, Any] | None, kind: int | None, done: list[str]
) -> None:
    stream = device.stream()
    core.calls.clear()
    found = device.foreign(Theirs(view(), interface=interface, kind=kind), stream)
    assert (found.address, found.dtype, found.shape, found.contiguous) == (4096, "float32", (2, 3), True)
    assert [call for call in core.calls if not call.startswith("device")] == done


@pytest.mark.parametrize(
    ("shape", "strides", "contiguous"),
    [((2, 3), (3, 1), True), ((2, 3), (1, 2), False), ((2, 3), (6, 1), False), ((1, 3), (99, 1), True), ((), (), True)],
)  # fmt: skip
def test_gaps_and_another_order_are_seen(
    device: CudaDevice, shape: tuple[int, ...], strides: tuple[int, ...], contiguous: bool
) -> None:
    found = device.foreign(Theirs(view(shape=shape, strides=strides)), device.stream())
    assert found.contiguous == contiguous


def test_what_is_on_no_gpu_or_another_one_is_refused(device: CudaDevice) -> None:
    stream = device.stream()
    for array in (np.zeros(3), [1.0], Theirs(view(), kind=1), Theirs(view(is_device_accessible=False))):
        with pytest.raises(UsageError, match="is not on a GPU: expected a device array"):
            device.foreign(array, stream)
    with pytest.raises(UsageError, match="lies on GPU 1, the engine on GPU 0"):
        device.foreign(Theirs(view(device_id=1)), stream)


def test_an_array_that_its_library_does_not_give_is_refused_in_its_words(device: CudaDevice) -> None:
    gone = BufferError("Can't export tensors that require gradient")
    with pytest.raises(UsageError, match=r"Theirs cannot be read on the GPU: Can't export"):
        device.foreign(Theirs(gone), device.stream())
    broken = CUDAError("CUDA_ERROR_ILLEGAL_ADDRESS: x")
    with pytest.raises(EnvironmentUnusable, match="restart it"):
        device.foreign(Theirs(broken), device.stream())


# Giving back


def kept(device: CudaDevice) -> DeviceArray:
    """An array of six numbers. Pinned memory plays the device's: the double has no other at an address."""
    return DeviceArray(device, Gate(device), device.pinned(24), "float32", (2, 3))


def test_a_kept_array_is_freed_only_once_nothing_reads_it(core: Core, device: CudaDevice) -> None:
    """Streams of other libraries are not ours: a free in our stream would not wait for them."""
    array = kept(device)
    core.calls.clear()
    array.close()
    assert core.calls.index("device.sync") < core.calls.index("buffer.close")


def test_a_kept_array_on_a_device_that_failed_is_given_back_all_the_same(
    core: Core, device: CudaDevice
) -> None:
    array = kept(device)
    core.fails["device.sync"] = CUDAError("CUDA_ERROR_ILLEGAL_ADDRESS: an illegal address")
    core.calls.clear()
    array.close()
    assert "buffer.close" in core.calls


def test_waiting_for_a_device_that_fails_says_why(core: Core, device: CudaDevice) -> None:
    core.fails["device.sync"] = CUDAError("CUDA_ERROR_ILLEGAL_ADDRESS: an illegal address")
    with pytest.raises(EnvironmentUnusable, match=r"^the GPU failed: .*restart it"):
        device.sync()


def test_a_sessions_own_memory_does_not_wait_for_the_whole_device(core: Core, device: CudaDevice) -> None:
    """Nobody else reads it, and another session may capture meanwhile, which such a wait would break."""
    memory = device.pinned(256)
    core.calls.clear()
    memory.close()
    assert "buffer.close" in core.calls
    assert "device.sync" not in core.calls


@contextmanager
def uncollected() -> Iterator[None]:
    """Without the garbage collector: what goes, goes with its last reference."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@pytest.mark.parametrize("error", [CUDAError, TypeError, UsageError])
def test_a_failure_leaves_nothing_to_the_collector(error: type[Exception]) -> None:
    """What the frames on its way held, such as a capture, goes with it."""

    class Thing:
        pass

    def act() -> weakref.ref[Thing]:
        held = Thing()
        found.append(weakref.ref(held))
        with translated("copying"):
            raise error("CUDA_ERROR_LAUNCH_FAILED: x")
        return found[0]

    found: list[weakref.ref[Thing]] = []
    with uncollected():
        with pytest.raises(Exception, match="CUDA_ERROR_LAUNCH_FAILED") as caught:
            act()
        del caught
        assert found[0]() is None


@pytest.mark.parametrize("way", ["end", "abandon"])
def test_a_capture_lets_its_builder_go(core: Core, device: CudaDevice, way: str) -> None:
    """The collector would end whatever the stream captures by then."""
    capture = device.capture(device.stream())
    getattr(capture, way)()
    assert core.calls.count("builder.close") == 1
    capture.abandon()
    assert core.calls.count("builder.close") == 1
