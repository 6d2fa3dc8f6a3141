"""A graph run as it is, by ONNX Runtime in fp32: what later stages are held against. No engine, no buffers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vsa_rt.engines.backend import Tensors
from vsa_rt.engines.onnxruntime_session import open_model, refusal, session_options


class GraphExecutor:
    """A graph run as it is, in fp32, with every output: what lowered graphs and engines are held against.

    Args:
        graph: A whole ONNX model.
    """

    def __init__(self, graph: bytes) -> None:
        self._session = open_model(graph, session_options(0), "refuses the graph")
        self._outputs: list[str] = [o.name for o in self._session.get_outputs()]
        #: The graph's own metadata, text by key.
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)

    def run(self, inputs: Tensors) -> dict[str, NDArray[np.float32]]:
        """Every output of one batch."""
        try:
            values = self._session.run(self._outputs, dict(inputs))
        except Exception as error:  # ORT's exceptions share no base class of their own
            batch = len(next(iter(inputs.values())))
            raise refusal(f"cannot run the graph on a batch of {batch}", error) from error
        return dict(zip(self._outputs, values, strict=True))
