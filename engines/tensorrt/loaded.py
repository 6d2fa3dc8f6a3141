"""TensorRT's runtime behind the CUDA session's seam: deserialised engines and their execution contexts.

Unproven on a GPU: the machines that run the tests have none. It is kept small for that; ``make test-gpu`` proves it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from vsa_rt.engines.cuda.faults import find_fault
from vsa_rt.engines.cuda.seam import Memory, Port, Stream
from vsa_rt.engines.tensorrt.library import Library
from vsa_rt.engines.tensorrt.refusals import words_of
from vsa_rt.errors import EnvironmentUnusable

#: A graph may name files as its weights: there is no folder to find them in.
_NOWHERE = "/nonexistent/graph.onnx"


def reason_of(errors: Iterable[str]) -> str:
    """Why the library refused, from what it told its logger: CUDA's error where there is one, else the first words."""
    told = list(errors)
    fault = next((fault for text in told if (fault := find_fault(text)) is not None), None)
    return str(fault) if fault is not None else words_of(told[0]) if told else "it gives no reason"


class LoadedContext:
    """See ``seam.Context``.

    Args:
        library: Whose it is.
        engine: The library's own.
        native: The library's own context of it.
        ports: The engine's.
    """

    def __init__(self, library: Library, engine: Any, native: Any, ports: Sequence[Port]) -> None:
        self._library, self._engine, self._native, self._ports = library, engine, native, ports
        self._profiler: Any = None

    def _refusal(self, doing: str) -> EnvironmentUnusable:
        errors = list(self._library.logger.errors)[-1:]
        return EnvironmentUnusable(f"{self._library} cannot {doing}: {reason_of(errors)}")

    def set_batch(self, batch: int) -> None:
        """See ``seam.Context.set_batch``."""
        for port in self._ports:
            if not port.taken:
                continue
            least, _, most = self._engine.get_tensor_profile_shape(port.name, 0)
            if not least[0] <= batch <= most[0]:
                raise EnvironmentUnusable(
                    f"{self._library}: the engine is for batches of {least[0]} to {most[0]}, not {batch}; build it "
                    f"with {'--min-batch' if batch < least[0] else '--max-batch'} {batch}"
                )
            if not self._native.set_input_shape(port.name, (batch, *port.shape[1:])):
                raise self._refusal(f"take {batch} rows of {port.name!r}")
        self._check_rows(batch)

    def _check_rows(self, batch: int) -> None:
        """Refuse an engine that gives other rows than one for each image: there would be no room for them."""
        try:
            unknown = [str(name) for name in self._native.infer_shapes()]
        except RuntimeError as error:
            raise EnvironmentUnusable(
                f"{self._library} cannot tell the shapes of {batch} images: {error}; rebuild the bundle"
            ) from error
        if unknown:
            raise EnvironmentUnusable(
                f"{self._library}: {unknown[0]!r} has no shape for {batch} images; rebuild the bundle"
            )
        for port in self._ports:
            shape = tuple(self._native.get_tensor_shape(port.name))
            if shape != (batch, *port.shape[1:]):
                raise EnvironmentUnusable(
                    f"{self._library}: tensor {port.name!r} of the engine has shape {list(shape)} for {batch} images, "
                    f"expected {[batch, *port.shape[1:]]}; rebuild the bundle"
                )

    @property
    def scratch(self) -> int:
        """See ``seam.Context.scratch``."""
        return self._library.dialect.scratch(self._engine, self._native)

    def use_scratch(self, memory: Memory | None) -> None:
        """See ``seam.Context.use_scratch``."""
        # Where none is needed, none has to be said as well.
        address, nbytes = (memory.address, memory.nbytes) if memory is not None else (0, 0)
        self._library.dialect.give_scratch(self._native, address, nbytes)

    def bind(self, name: str, address: int) -> None:
        """See ``seam.Context.bind``.

        Raises:
            EnvironmentUnusable: The engine has no such tensor.
        """
        if not self._native.set_tensor_address(name, address):
            raise self._refusal(f"bind tensor {name!r}")

    def enqueue(self, stream: Stream) -> None:
        """See ``seam.Context.enqueue``."""
        if not self._native.execute_async_v3(stream.handle):
            raise self._refusal("run the engine")

    def capturable(self, stream: Stream) -> bool:
        """See ``seam.Context.capturable``."""
        return self._library.dialect.capturable(self._native, stream.handle)

    def watch(self, profiler: Any) -> None:
        """Let the library's counters of layers report, when asked by ``report``.

        Args:
            profiler: The library's ``IProfiler``.
        """
        self._profiler = profiler  # the context does not keep it alive
        self._native.profiler = profiler
        # The run itself would wait for the device, and report at once.
        self._native.enqueue_emits_profile = False

    def report(self) -> None:
        """Let the library tell the profiler of the last run, which must have ended.

        Raises:
            EnvironmentUnusable: It kept no counters.
        """
        if not self._native.report_to_profiler():
            raise self._refusal("tell the times of layers")

    def described(self) -> str:
        """The library's inspector on the layers that run for the batch that was set, in JSON."""
        inspector = self._engine.create_engine_inspector()
        inspector.execution_context = self._native
        return str(inspector.get_engine_information(self._library.trt.LayerInformationFormat.JSON))

    def close(self) -> None:
        """See ``seam.Closable``: the bindings free it with the last reference."""
        self._native = self._engine = self._profiler = None


class LoadedEngine:
    """See ``seam.Engine``.

    Args:
        library: Whose it is.
        runtime: The library's own.
        native: The library's own engine of it.

    Attributes:
        library: See Args.

    Raises:
        EnvironmentUnusable: One of its tensors is of no type or place that numpy and the session know.
    """

    def __init__(self, library: Library, runtime: Any, native: Any) -> None:
        self.library, self._runtime, self._native = library, runtime, native
        self._ports = tuple(_port(library, native, i) for i in range(native.num_io_tensors))

    @property
    def ports(self) -> Sequence[Port]:
        """See ``seam.Engine.ports``."""
        return self._ports

    def context(self) -> LoadedContext:
        """See ``seam.Engine.context``."""
        with self.library.alone() as errors:
            native = self.library.dialect.new_context(self._native)
            if native is None:
                raise EnvironmentUnusable(f"{self.library} makes no execution context: {reason_of(errors)}")
        return LoadedContext(self.library, self._native, native, self._ports)

    def close(self) -> None:
        """See ``seam.Closable``: the bindings free it with the last reference, an engine before its runtime."""
        self._native = None
        self._runtime = None


def _port(library: Library, engine: Any, index: int) -> Port:
    trt = library.trt
    name = str(engine.get_tensor_name(index))
    dtype = engine.get_tensor_dtype(name)
    if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
        raise EnvironmentUnusable(
            f"{library}: tensor {name!r} of the engine lies on the host; rebuild the bundle"
        )
    try:
        word = np.dtype(trt.nptype(dtype)).name
    except TypeError as error:
        raise EnvironmentUnusable(
            f"{library}: tensor {name!r} of the engine is of {dtype}, which numpy lacks; rebuild the bundle"
        ) from error
    shape = tuple(None if n < 0 else int(n) for n in engine.get_tensor_shape(name))
    return Port(name, engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT, word, shape)


def load_engine(
    library: Library,
    data: bytes,
    graph: Callable[[], bytes] | None = None,
    host_code: bool = False,
) -> LoadedEngine:
    """Deserialise an engine on the calling thread's device.

    Whether it fits this machine must have been asked before (``fitness.refusal``): from here on native code reads the
    bytes.

    Args:
        library: Who opens it.
        data: The serialised engine.
        graph: Reads the ONNX graph that it was compiled from, for an engine without weights; ``None`` for one with.
        host_code: Whether code for the host inside of them may run, as version-compatible engines have it.

    Raises:
        EnvironmentUnusable: The library refuses it, or its weights do not come from that graph.
    """
    weights = graph() if graph is not None else None
    with library.alone() as errors:
        try:
            runtime = library.trt.Runtime(library.logger)
        except (RuntimeError, TypeError) as error:  # pybind says TypeError of a constructor that gave nothing
            why = reason_of(errors) if errors else str(error)
            raise EnvironmentUnusable(f"{library} has no runtime here: {why}") from error
        runtime.engine_host_code_allowed = host_code
        if invalid := library.dialect.validity(runtime, data):
            raise EnvironmentUnusable(f"{invalid}{_also(errors)}; rebuild the bundle here")
        native = runtime.deserialize_cuda_engine(data)
        if native is None:
            raise EnvironmentUnusable(
                f"{library} cannot open the engine: {reason_of(errors)}; rebuild the bundle here"
            )
        if weights is not None:
            _refit(library, native, weights, errors)
    return LoadedEngine(library, runtime, native)


def _also(errors: Iterable[str]) -> str:
    told = list(errors)
    return f": {reason_of(told)}" if told else ""


def _refit(library: Library, engine: Any, graph: bytes, errors: Iterable[str]) -> None:
    """Give an engine the weights of a graph.

    Raises:
        EnvironmentUnusable: The graph is another one, or the device has no memory for them.
    """
    trt = library.trt
    refitter = trt.Refitter(engine, library.logger)
    parser = trt.OnnxParserRefitter(refitter, library.logger)
    if not parser.refit_from_bytes(graph, _NOWHERE):
        told = [str(parser.get_error(i).desc()) for i in range(parser.num_errors)]
        raise EnvironmentUnusable(
            f"{library} cannot take the engine's weights from the graph: {reason_of(told or errors)}; rebuild the bundle"
        )
    if not refitter.refit_cuda_engine():
        missing = [str(name) for name in refitter.get_missing_weights()]
        why = f"the graph lacks {', '.join(missing[:3])}" if missing else reason_of(errors)
        raise EnvironmentUnusable(f"{library} cannot give the engine its weights: {why}; rebuild the bundle")
