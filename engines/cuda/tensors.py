"""Which tensors a session holds on the device, and whether its engines fit together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vsa_rt.contracts import TensorSpec
from vsa_rt.engines.backend import check_tensor
from vsa_rt.engines.cuda.seam import Form, Port, Stage
from vsa_rt.errors import EnvironmentUnusable


@dataclass(frozen=True)
class Tensor:
    """One tensor of a graph, or between its parts.

    Attributes:
        name: Its name.
        dtype: numpy's word.
        row: Shape of one image's part.
        nbytes: Of one row.
    """

    name: str
    dtype: str
    row: tuple[int, ...]
    nbytes: int


def tensor_of(port: Port) -> Tensor:
    """The tensor of a port.

    Raises:
        EnvironmentUnusable: Its rows have no fixed size.
    """
    row = tuple(n for n in port.shape[1:] if n is not None)
    try:
        width = np.dtype(port.dtype).itemsize
    except TypeError as error:
        raise EnvironmentUnusable(
            f"cuda: tensor {port.name!r} of the engine is {port.dtype}, which numpy does not know; rebuild the bundle"
        ) from error
    nbytes = math.prod(row) * width
    if len(row) != len(port.shape) - 1 or nbytes < 1:
        raise EnvironmentUnusable(
            f"cuda: tensor {port.name!r} of the engine has shape {list(port.shape)}; expected a batch axis and fixed "
            "sizes behind it; rebuild the bundle"
        )
    return Tensor(port.name, port.dtype, row, nbytes)


def tensors_of(
    forms: Sequence[Form], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> dict[str, Tensor]:
    """Every tensor that the forms' engines take or give.

    Args:
        forms: Ways to compute the graph.
        inputs: What the manifest says the graph takes.
        outputs: What it says the graph gives.

    Returns:
        Name to tensor; one that several stages or forms have is there once.

    Raises:
        EnvironmentUnusable: A form is not what the specs say, or its stages do not fit together.
    """
    found: dict[str, Tensor] = {}
    for form in forms:
        _check_form(form, inputs, outputs)
        for stage in form.stages:
            for port in stage.engine.ports:
                tensor = tensor_of(port)
                there = found.setdefault(port.name, tensor)
                if (there.row, np.dtype(there.dtype)) != (tensor.row, np.dtype(tensor.dtype)):
                    raise EnvironmentUnusable(
                        f"cuda: tensor {port.name!r} is {there.dtype} {list(there.row)} in one engine and "
                        f"{tensor.dtype} {list(tensor.row)} in {_place(form, stage)}; rebuild the bundle"
                    )
    return found


def _place(form: Form, stage: Stage) -> str:
    return f"the engine {stage.name!r} of the form {form.name!r}"


def _check_form(form: Form, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    taken: dict[str, Port] = {}
    given: dict[str, Port] = {}
    known = {spec.name for spec in inputs}
    for stage in form.stages:
        for port in stage.engine.ports:
            if port.taken and port.name not in known:
                raise EnvironmentUnusable(
                    f"cuda: {_place(form, stage)} takes {port.name!r}, which neither the graph takes nor an engine "
                    "before it gives; rebuild the bundle"
                )
            if port.taken:
                taken[port.name] = port
        for port in stage.engine.ports:
            if not port.taken and port.name in known:
                raise EnvironmentUnusable(
                    f"cuda: {_place(form, stage)} gives {port.name!r}, which is there already; rebuild the bundle"
                )
            if not port.taken:
                given[port.name] = port
                known.add(port.name)
    _check_specs(inputs, taken)
    _check_specs(outputs, given)


def _check_specs(specs: Sequence[TensorSpec], ports: Mapping[str, Port]) -> None:
    for spec in specs:
        check_tensor("cuda", spec, {name: port.shape for name, port in ports.items()})
        # Nothing casts between the host's buffers and the engine's.
        if ports[spec.name].dtype != spec.dtype:
            raise EnvironmentUnusable(
                f"cuda: tensor {spec.name!r} of the engine is {ports[spec.name].dtype}, the manifest says "
                f"{spec.dtype}; rebuild the bundle"
            )
