"""The ensemble as one ONNX graph, and what it says about itself in its metadata."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import warnings
from collections.abc import Iterator

import msgspec
import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from vsa_rt.contracts import scores_kind
from vsa_rt.export.ensemble import Ensemble
from vsa_rt.export.purpose import METADATA, OPSET, GraphPurpose, strip_debris
from vsa_rt.export.skeleton import skeleton
from vsa_rt.recipe import views_of_recipe

#: Names that inputs and taps have while torch exports them.
_INPUT, _TAP = "vsa_input_", "vsa_tap_"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporter prints its steps and warns of its own internals; errors still come as exceptions."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _rename(model: onnx.ModelProto, ensemble: Ensemble) -> None:
    """Give inputs and taps their names, and all else a prefix: the exporter's own names may be a backbone's."""
    final = {f"{_INPUT}{i}": record.name for i, record in enumerate(ensemble.inputs)}
    final |= {f"{_TAP}{i}": record.name for i, record in enumerate(ensemble.taps)}

    def named(name: str) -> str:
        return final.get(name, f"%{name}") if name else ""

    for node in model.graph.node:
        node.input[:] = [named(n) for n in node.input]
        node.output[:] = [named(n) for n in node.output]
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        value.name = named(value.name)
    del model.graph.value_info[:]


#: What only moves weights about. The exporter leaves such nodes in the graph where their tensors are large.
_MOVES = frozenset({"Concat", "Reshape", "Transpose", "Slice", "Split", "Squeeze", "Unsqueeze", "Identity"})


def _fold_moved_weights(model: onnx.ModelProto) -> None:
    """Compute nodes that only rearrange weights, so that a lowered graph holds the result in its own type."""
    known = {t.name: t for t in model.graph.initializer}
    outputs = {o.name for o in model.graph.output}
    kept = []
    for node in model.graph.node:
        inputs = [name for name in node.input if name]
        folds = node.op_type in _MOVES and inputs and all(name in known for name in inputs)
        if not folds or outputs.intersection(node.output):
            kept.append(node)
            continue
        feeds = {name: numpy_helper.to_array(known[name]) for name in inputs}
        values = ReferenceEvaluator(node).run(None, feeds)
        for name, value in zip(node.output, values, strict=True):
            known[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
    used = {name for node in kept for name in node.input}
    del model.graph.node[:]
    model.graph.node.extend(kept)
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensor for name, tensor in known.items() if name in used)


def graph_from_ensemble(ensemble: Ensemble) -> onnx.ModelProto:
    """Export an ensemble with a dynamic batch.

    Args:
        ensemble: In evaluation mode.

    Returns:
        One graph: uint8 inputs ``(N, H, W, 3)``, every tap an output ``(N, width)`` in float32, purpose in
        its metadata, and no names of this machine's files in it.
    """
    batch = torch.export.Dim("batch", min=1, max=4096)
    # Two images: an example batch of one would be taken for a constant.
    example = tuple(torch.zeros((2, *i.shape), dtype=getattr(torch, i.dtype)) for i in ensemble.inputs)
    with _quiet():
        program = torch.onnx.export(
            ensemble,
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=[f"{_INPUT}{i}" for i in range(len(ensemble.inputs))],
            output_names=[f"{_TAP}{i}" for i in range(len(ensemble.taps))],
            dynamic_shapes=(tuple({0: batch} for _ in example),),
            optimize=True,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program")
    model = program.model_proto
    # The program is a circle of references that holds the weights once more.
    del program
    gc.collect()
    _rename(model, ensemble)
    _fold_moved_weights(model)
    strip_debris(model)
    recipe = ensemble.recipe
    purpose = GraphPurpose(
        inputs=ensemble.inputs,
        taps=ensemble.taps,
        labels=recipe.labels,
        task=recipe.task,
        threshold=recipe.threshold,
        resample=recipe.resample,
        scores_kind=scores_kind(recipe.task, recipe.head.kind),
        views=views_of_recipe(recipe),
    )
    onnx.helper.set_model_props(model, {METADATA: msgspec.json.encode(purpose).decode()})
    onnx.checker.check_model(skeleton(model), full_check=True)
    return model
