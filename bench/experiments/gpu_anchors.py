"""Latencies that others published of engines on GPUs, and the networks that they are of.

Each was read from its source, none was measured here. The networks are timm's of the same name, exported as a recipe is:
MLPerf's ResNet-50 v1.5 is timm's ``resnet50``. That of NVIDIA's TensorFlow quantization zoo is v1, whose strides lie
elsewhere (3.9 instead of 4.1 x 10^9 multiply-adds), so that its floor here is a little too high.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Anchor:
    """One published figure.

    Attributes:
        network: Of timm.
        device: A name of ``bench/gpu_devices.py``.
        precision: That the publisher names.
        batch: Images per call; 0 of an offline figure, whose publisher chose it.
        ms: Of a call; of an image of an offline figure.
        what: What kind of figure it is.
        source: Who published it.
    """

    network: str
    device: str
    precision: Literal["fp16", "int8"]
    batch: int
    ms: float
    what: str
    source: str


_MLPERF = "MLPerf Inference, closed division, raw log summaries"
_ZOO = "NVIDIA TensorFlow quantization model zoo, TensorRT 8.4"
_TORCH2TRT = "torch2trt's benchmarks"
#: Calls that an offline figure may be made of; the floor of the one that suits it best counts.
OFFLINE = (1, 8, 32, 128, 256)


def _offline(device: str, per_second: float, what: str) -> Anchor:
    return Anchor("resnet50", device, "int8", 0, 1e3 / per_second, f"offline, {what}", _MLPERF)


def _single(device: str, ms: float, what: str) -> Anchor:
    return Anchor("resnet50", device, "int8", 1, ms, f"single stream, {what}", _MLPERF)


#: MLPerf's logs do not state the precision: INT8 by NVIDIA's custom. Its accuracy fits that.
ANCHORS: tuple[Anchor, ...] = (
    _single("AGX Orin 64GB", 0.636, "p50, v3.1"),
    _single("L4", 0.346, "p50, v3.1"),
    _single("A100 SXM 80GB", 0.453, "p50, v3.0"),
    Anchor("resnet50", "AGX Orin 64GB", "int8", 8, 2.18, "multi-stream of 8, p99, v3.1", _MLPERF),
    Anchor("resnet50", "L4", "int8", 8, 0.751, "multi-stream of 8, p99, v4.1", _MLPERF),
    _offline("L4", 25_600 / 2, "25,600 images/s of two, v4.1"),
    _offline("H100 SXM", 91_826, "91,826 images/s, v3.0"),
    Anchor("resnet50", "A100 SXM 80GB", "int8", 1, 0.46, "latency", _ZOO),
    Anchor("resnet101", "A100 SXM 80GB", "int8", 1, 0.84, "latency", _ZOO),
    Anchor("inception_v3", "A100 SXM 80GB", "int8", 1, 0.82, "latency", _ZOO),
    Anchor("tf_efficientnet_b0", "A100 SXM 80GB", "int8", 1, 0.67, "latency", _ZOO),
    Anchor("tf_efficientnet_b3", "A100 SXM 80GB", "int8", 1, 1.24, "latency", _ZOO),
    Anchor("resnet50", "T4", "fp16", 1, 1.26, "latency", "mmdeploy's benchmarks, TensorRT 7.2"),
    Anchor("resnet50", "T4", "int8", 1, 1.21, "latency", "mmdeploy's benchmarks, TensorRT 7.2"),
    Anchor("resnet152", "AGX Xavier", "fp16", 1, 1e3 / 121, "121 images/s", _TORCH2TRT),
    Anchor("resnet152", "Jetson Nano", "fp16", 1, 1e3 / 14.1, "14.1 images/s", _TORCH2TRT),
)
#: Published ones without a floor here, each with the reason.
LEFT_OUT: dict[str, str] = {
    "MLPerf, AGX Orin offline, 6,424 images/s": "its GPU and both DLAs together",
    "MLPerf, AGX Orin MaxQ, Orin NX, L40S, H200": "a mode or device that is not in the table",
    "jetson_benchmarks, Xavier NX": "its GPU and both DLAs together",
    "Roboflow, L4, ResNet-50, 601 images/s": "of its own stack from image to answer, in an unnamed precision",
    "ultralytics and trtutils": "other networks",
    "timm, RTX 4090": "PyTorch without an engine, batch 1024",
    "EfficientNetV2-S sample, 1.81 ms": "the GPU is not stated",
}
