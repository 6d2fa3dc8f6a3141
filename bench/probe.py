"""Writes the probe graphs of ``vsa-rt doctor``: ``python -m vsa_rt.bench.probe``.

A few hundred bytes each: the weights are a ConstantOfShape, which every engine folds into a dense tensor.
"""

from __future__ import annotations

from pathlib import Path

from vsa_rt import engines
from vsa_rt.contracts import Precision

#: Four 3 x 3 convolutions of 128 channels on 28 x 28.
CHANNELS, SIZE, LAYERS = 128, 28, 4
#: Multiply-adds of one image.
MACS = LAYERS * 9 * CHANNELS * CHANNELS * SIZE * SIZE


def probe_graph(precision: Precision) -> bytes:
    """Convolutions ``(N, 128, 28, 28)`` and a mean, in one precision, float32 outside."""
    import onnx
    from onnx import TensorProto, helper

    kind = TensorProto.BFLOAT16 if precision is Precision.BF16 else TensorProto.FLOAT
    shape = helper.make_tensor("shape", TensorProto.INT64, [4], [CHANNELS, CHANNELS, 3, 3])
    value = helper.make_tensor("value", TensorProto.FLOAT, [1], [1 / (9 * CHANNELS)])
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["weight32"], value=value),
        helper.make_node("Cast", ["weight32"], ["weight"], to=kind),
        helper.make_node("Cast", ["image"], ["x0"], to=kind),
    ]
    nodes += [
        helper.make_node("Conv", [f"x{i}", "weight"], [f"x{i + 1}"], pads=[1, 1, 1, 1]) for i in range(LAYERS)
    ]
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])
    nodes += [
        helper.make_node("Cast", [f"x{LAYERS}"], ["last"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["last", "axes"], ["features"], keepdims=0),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", CHANNELS, SIZE, SIZE])
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", CHANNELS])
    graph = helper.make_graph(nodes, "probe", [image], [features], [shape, axes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def main() -> None:
    """Write both graphs beside the backends."""
    folder = Path(str(engines.__file__)).parent
    for precision in Precision:
        (folder / f"probe.{precision}.onnx").write_bytes(probe_graph(precision))


if __name__ == "__main__":
    main()
