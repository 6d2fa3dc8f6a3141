"""What the tests on a GPU share: the device, and engines made of small kernels in place of TensorRT's.

``make test-gpu`` runs them. Without a GPU, a driver or a library every one of them is skipped with what is missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vsa_rt.contracts import TensorSpec
from vsa_rt.engines.backend import OpenOptions
from vsa_rt.engines.cuda.device import CudaDevice, open_device
from vsa_rt.engines.cuda.faults import translated
from vsa_rt.engines.cuda.handles import native_of
from vsa_rt.engines.cuda.seam import Form, Memory, Port, Stage, Stream
from vsa_rt.engines.cuda.session import CudaSession
from vsa_rt.errors import EnvironmentUnusable

#: Elements of one row of every tensor.
WIDTH = 12
SOURCE = """
extern "C" __global__ void widen(const unsigned char* x, float* y, unsigned n, long long cycles) {
  long long until = clock64() + cycles;
  while (clock64() < until) {}
  unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = x[i];
}
extern "C" __global__ void scale(const float* x, float* y, float gain, float offset, unsigned n) {
  unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = gain * x[i] + offset;
}
extern "C" __global__ void join(const float* a, const float* b, float* y, unsigned n) {
  unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = a[i] + 2.0f * b[i];
}
"""
_BLOCK = 128

#: Puts an engine's kernels into a stream: addresses of its tensors, that of its scratch memory, elements.
Work = Callable[[Stream, Mapping[str, int], int, int], None]


def expected(image: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """What the kernels compute; every value is exact in float32."""
    a = 0.5 * image.astype(np.float32) + 1
    b = -2 * image.astype(np.float32) + 3
    return {"a": a, "b": b, "scores": a + 2 * b}


class KernelContext:
    """See ``seam.Context``."""

    def __init__(self, engine: KernelEngine) -> None:
        self._engine = engine
        self._batch = 0
        self._scratch = 0
        self._addresses: dict[str, int] = {}

    def set_batch(self, batch: int) -> None:
        self._batch = batch

    @property
    def scratch(self) -> int:
        return 4 * self._batch * WIDTH

    def use_scratch(self, memory: Memory | None) -> None:
        self._scratch = memory.address if memory is not None else 0

    def bind(self, name: str, address: int) -> None:
        self._addresses[name] = address

    def enqueue(self, stream: Stream) -> None:
        self._engine.work(stream, self._addresses, self._scratch, self._batch * WIDTH)

    def capturable(self, stream: Stream) -> bool:
        return self._engine.capturable

    def close(self) -> None:
        self._addresses.clear()


@dataclass
class KernelEngine:
    """See ``seam.Engine``.

    Attributes:
        ports: What it takes and gives.
        work: Its kernels.
        capturable: What its contexts say.
    """

    ports: Sequence[Port]
    work: Work
    capturable: bool = True

    def context(self) -> KernelContext:
        return KernelContext(self)

    def close(self) -> None:
        """Nothing: the module is the tests'."""


class Kernels:
    """The compiled kernels.

    Args:
        device: Where they run.

    Raises:
        EnvironmentUnusable: NVRTC is not there.
    """

    def __init__(self, device: CudaDevice) -> None:
        self._core = import_module("cuda.core")
        device.enter()
        with translated("the tests' kernels cannot be compiled by NVRTC"):
            options = self._core.ProgramOptions(arch=device.facts.capability)
            code = self._core.Program(SOURCE, code_type="c++", options=options).compile("cubin")
        self._kernels = {name: code.get_kernel(name) for name in ("widen", "scale", "join")}

    def launch(self, stream: Stream, name: str, count: int, *arguments: Any) -> None:
        """Put a kernel into a stream, for so many elements."""
        config = self._core.LaunchConfig(grid=math.ceil(count / _BLOCK), block=_BLOCK)
        self._core.launch(native_of(stream), config, self._kernels[name], *arguments)

    def backbone(self, gain: float, offset: float, tap: str, cycles: int) -> Work:
        """Image to features, through the scratch memory."""

        def work(stream: Stream, at: Mapping[str, int], scratch: int, count: int) -> None:
            n = np.uint32(count)
            self.launch(stream, "widen", count, at["image"], scratch, n, np.int64(cycles))
            self.launch(stream, "scale", count, scratch, at[tap], np.float32(gain), np.float32(offset), n)

        return work

    def head(self, stream: Stream, at: Mapping[str, int], scratch: int, count: int) -> None:
        """Features to scores."""
        self.launch(stream, "join", count, at["a"], at["b"], at["scores"], np.uint32(count))

    def forms(self, *, capturable: bool = True, cycles: int = 0) -> list[Form]:
        """The same graph as one engine, and as two backbones and a head.

        Args:
            capturable: What contexts say of themselves.
            cycles: That each backbone wastes at least.
        """
        a, b = self.backbone(0.5, 1, "a", cycles), self.backbone(-2, 3, "b", cycles)

        def whole(stream: Stream, at: Mapping[str, int], scratch: int, count: int) -> None:
            for work in (a, b, self.head):
                work(stream, at, scratch, count)

        def stage(name: str, work: Work, taken: Sequence[str], given: Sequence[str]) -> Stage:
            ports = [
                Port(n, n in taken, "uint8" if n == "image" else "float32", (None, WIDTH))
                for n in (*taken, *given)
            ]
            return Stage(name, KernelEngine(ports, work, capturable))

        return [
            Form("merged", (stage("merged", whole, ["image"], ["a", "b", "scores"]),)),
            Form(
                "streams",
                (
                    stage("a", a, ["image"], ["a"]),
                    stage("b", b, ["image"], ["b"]),
                    stage("head", self.head, ["a", "b"], ["scores"]),
                ),
            ),
        ]


@pytest.fixture(scope="session")
def device() -> CudaDevice:
    """The first GPU."""
    pytest.importorskip("cuda.core", reason="cuda-core is not installed")
    try:
        return open_device()
    except EnvironmentUnusable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def kernels(device: CudaDevice) -> Kernels:
    """Kernels in place of engines."""
    try:
        return Kernels(device)
    except EnvironmentUnusable as error:
        pytest.skip(str(error))


#: Opens a session over kernels: keywords of ``Kernels.forms``, and of ``OpenOptions``.
Opener = Callable[..., CudaSession]


@pytest.fixture
def opened(device: CudaDevice, kernels: Kernels) -> Opener:
    """Opens a session for batches of up to 8."""

    def make(*, capturable: bool = True, cycles: int = 0, **options: Any) -> CudaSession:
        return CudaSession(
            device,
            kernels.forms(capturable=capturable, cycles=cycles),
            [TensorSpec("image", "uint8", (None, WIDTH))],
            [TensorSpec(name, "float32", (None, WIDTH)) for name in ("a", "b", "scores")],
            OpenOptions(max_batch=8, threads=1, **{"slots": 2, **options}),
        )

    return make


@pytest.fixture
def reference() -> Callable[[NDArray[np.uint8]], dict[str, NDArray[np.float32]]]:
    """What a session over kernels must give."""
    return expected


@pytest.fixture
def images() -> Callable[..., NDArray[np.uint8]]:
    """Makes a batch."""

    def make(count: int, seed: int = 0) -> NDArray[np.uint8]:
        return np.random.default_rng([seed, count]).integers(0, 256, (count, WIDTH), np.uint8)

    return make
