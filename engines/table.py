"""The table of backends: a new one is one module and one line here."""

from __future__ import annotations

import importlib
from functools import cache

from vsa_rt.contracts import Target
from vsa_rt.engines.backend import Backend, Probe
from vsa_rt.errors import UsageError

#: Backend name to ``module:class``. The module is imported when the backend is first asked for.
BACKENDS = {
    "openvino": "vsa_rt.engines.openvino:OpenVino",
    "onnxruntime": "vsa_rt.engines.onnxruntime:OnnxRuntime",
    "tensorrt": "vsa_rt.engines.tensorrt.backend:TensorRt",
    "tensorrt-rtx": "vsa_rt.engines.tensorrt.backend:TensorRtRtx",
}


@cache
def backend(name: str) -> Backend:
    """The backend of that name.

    Raises:
        UsageError: No such backend.
    """
    if name not in BACKENDS:
        raise UsageError(f"backend {name!r}: unknown; there are {', '.join(BACKENDS)}")
    module, _, attribute = BACKENDS[name].partition(":")
    made: Backend = getattr(importlib.import_module(module), attribute)()
    return made


def targets() -> list[Target]:
    """Every target that is looked at where none is named, in the table's order."""
    return [Target(name, device) for name in BACKENDS for device in backend(name).devices]


def probe(target: Target) -> Probe:
    """Look whether a target can be used here.

    Raises:
        UsageError: No such backend or device.
    """
    known = backend(target.backend)
    problem = known.knows(target.device)
    if problem:
        raise UsageError(f"target {target}: {problem}")
    return known.probe(target.device)
