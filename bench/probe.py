"""Writes the probe graphs of ``vsa-rt doctor``: ``python -m vsa_rt.bench.probe``.

A few hundred bytes each: the weights are a ConstantOfShape, which every engine folds into a dense tensor.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vsa_rt import engines
from vsa_rt.contracts import Precision

if TYPE_CHECKING:
    import onnx

#: Four 3 x 3 convolutions of 128 channels on 28 x 28.
CHANNELS, SIZE, LAYERS = 128, 28, 4
#: Multiply-adds of one image.
MACS = LAYERS * 9 * CHANNELS * CHANNELS * SIZE * SIZE


#: Precisions that have a probe graph.
PROBED = (Precision.FP32, Precision.FP16, Precision.BF16, Precision.INT8)
#: A normal distribution's values lie within four deviations but for one of 16,000: int8's scale of what flows.
_FLOW_SCALE = 4 / 127
_WEIGHT = 1 / (9 * CHANNELS)


class _Probe:
    """The nodes of one probe graph."""

    def __init__(self, precision: Precision) -> None:
        from onnx import TensorProto, helper

        self.int8 = precision is Precision.INT8
        types = {Precision.FP16: TensorProto.FLOAT16, Precision.BF16: TensorProto.BFLOAT16}
        self.kind = types.get(precision, TensorProto.FLOAT)
        self.nodes: list[onnx.NodeProto] = []
        self.constants = [helper.make_tensor("shape", TensorProto.INT64, [4], [CHANNELS, CHANNELS, 3, 3])]
        if self.int8:
            for name, scale in (("flow", _FLOW_SCALE), ("weight", _WEIGHT)):
                self.constants += [
                    helper.make_tensor(f"{name}_scale", TensorProto.FLOAT, [], [scale]),
                    helper.make_tensor(f"{name}_zero", TensorProto.INT8, [], [0]),
                ]

    def _node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def _weights(self) -> str:
        from onnx import TensorProto, helper

        value = helper.make_tensor("value", TensorProto.FLOAT, [1], [_WEIGHT])
        self._node("ConstantOfShape", ["shape"], "weight32", value=value)
        if self.int8:
            # In the graph: TensorRT refuses a ConstantOfShape of bytes, and OpenVINO leaves a Broadcast behind it.
            scale = ["weight_scale", "weight_zero"]
            self._node("QuantizeLinear", ["weight32", *scale], "weight_q")
            return self._node("DequantizeLinear", ["weight_q", *scale], "weight")
        return self._node("Cast", ["weight32"], "weight", to=self.kind)

    def _flow(self, name: str) -> str:
        """What a convolution reads: as it is, or quantised."""
        if not self.int8:
            return name
        scale = ["flow_scale", "flow_zero"]
        self._node("QuantizeLinear", [name, *scale], f"{name}_q")
        return self._node("DequantizeLinear", [f"{name}_q", *scale], f"{name}_dq")

    def model(self) -> bytes:
        """The whole model."""
        import onnx
        from onnx import TensorProto, helper

        weight = self._weights()
        last = self._node("Cast", ["image"], "x0", to=self.kind)
        for layer in range(1, LAYERS + 1):
            last = self._node("Conv", [self._flow(last), weight], f"x{layer}", pads=[1, 1, 1, 1])
        self.constants.append(helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3]))
        self._node("Cast", [last], "last", to=TensorProto.FLOAT)
        self._node("ReduceMean", ["last", "axes"], "features", keepdims=0)
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", CHANNELS, SIZE, SIZE])
        features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", CHANNELS])
        graph = helper.make_graph(self.nodes, "probe", [image], [features], self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString())


def probe_graph(precision: Precision) -> bytes:
    """Convolutions ``(N, 128, 28, 28)`` and a mean, in one precision, float32 outside.

    Args:
        precision: One of ``PROBED``. int8 is explicit: weights and what flows are quantised and dequantised,
            symmetrically.
    """
    return _Probe(precision).model()


def main() -> None:
    """Write all graphs beside the backends."""
    folder = Path(str(engines.__file__)).parent
    for precision in PROBED:
        (folder / f"probe.{precision}.onnx").write_bytes(probe_graph(precision))


if __name__ == "__main__":
    main()
